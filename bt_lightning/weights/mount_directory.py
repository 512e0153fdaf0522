"""What is mounted: a folder of hard links to the cache, which appears, or is replaced, at once.

A note in the cache says what a mount holds, so that one that somebody else made, or changed, is
never replaced, unless the user says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from bt_lightning.errors import CheckpointExistsError, DirectoryUnusableError
from bt_lightning.file_limits import MANIFEST
from bt_lightning.localdir.atomic_directory import publish_directory, temporary, tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.disk_space import measure
from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.fsync import sync_directory, write_all
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.weights.blob_cache import full
from bt_lightning.weights.file_digests import SHA256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bt_lightning.weights.blob_cache import Blob

_State: TypeAlias = "dict[str, list[Any]]"
"""Path -> SHA-256, bytes and time of writing of each file."""
_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01
_COPIED_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MountDirectory:
    """One mount location on this machine: a folder, or a file for a source that is one file."""

    location: Path
    notes: Path
    """The folder of the cache with the notes about mounts."""

    def holds(self, blobs: Mapping[str, Blob]) -> bool:
        """Whether exactly these files lie there, as they were mounted."""
        wanted = {path: blob.sha256 for path, blob in blobs.items()}
        states = self._states()
        return any(
            {path: one[0] for path, one in state.items()} == wanted and self._is(state)
            for state in states
        )

    def check_replaceable(self) -> None:
        """Raise unless the location is free, empty, or holds only what was mounted there.

        Raises:
            CheckpointExistsError: somebody else wrote there.
        """
        if self._is_free() or any(map(self._is, self._states())):
            return
        msg = (
            f"{self.location} is there already and is not, or not only, what was pulled there: move"
            " it away, or say --replace"
        )
        raise CheckpointExistsError(msg)

    def mount(self, blobs: Mapping[str, Blob], *, replace: bool) -> None:
        """Build the folder beside its place, and exchange it with what is there.

        With `replace`, whatever is there is replaced. Raises as `check_replaceable`, and:
            DirectoryFullError, DirectoryUnusableError: it does not fit, or cannot be written.
        """
        root = check_root(self.location.parent)
        try:
            with directory_errors(root), temporary(root) as scratch:
                _check_room(root, blobs)
                built = scratch / "mount"
                state = {path: _place(blob, built, path) for path, blob in blobs.items()}
                _sync_folders(built)
                with self._locked():
                    if not replace:
                        self.check_replaceable()
                    self._write(state, *self._states())  # a kill may come before or after
                    self._exchange(built, scratch)
                    self._write(state)
        finally:
            tidy(root)

    def _exchange(self, built: Path, scratch: Path) -> None:
        root = self.location.parent
        is_folder = self.location.is_dir() and not self.location.is_symlink()
        if built.is_dir() and (is_folder or not os.path.lexists(self.location)):
            publish_directory(built, self.location, root)
            return
        if built.is_dir() or is_folder:
            self.location.rename(scratch / "replaced")
        built.replace(self.location)
        sync_directory(root)

    def _is_free(self) -> bool:
        try:
            status = self.location.lstat()
        except FileNotFoundError:
            return True
        return stat.S_ISDIR(status.st_mode) and not any(self.location.iterdir())

    def _is(self, state: _State) -> bool:
        """Whether just the files of `state` lie there, as they were written."""
        return bool(state) and _files(self.location) == {
            path: (one[1], one[2]) for path, one in state.items()
        }

    def _states(self) -> list[_State]:
        """What may lie there by the note: one state, or two where a process was killed."""
        try:
            states: list[_State] = read_json(self._note(), MANIFEST)["states"]
            good = [one for one in states if all(map(_is_entry, one.values()))]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return []
        return good

    def _write(self, *states: _State) -> None:
        import json

        data = json.dumps({"location": str(self.location), "states": states[:2]}).encode()
        replace_small(self._note(), data, part=f".{os.urandom(8).hex()}.part")

    def _note(self) -> Path:
        name = hashlib.blake2b(os.fsencode(self.location), digest_size=20).hexdigest()
        return self.notes / f"{name}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of this mount, which others hold for the time of a rename."""
        self.notes.mkdir(parents=True, exist_ok=True)
        descriptor = open_own(self._note().with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        until = time.monotonic() + _TIMEOUT_S
        try:
            while not try_lock(descriptor):
                if time.monotonic() > until:
                    msg = f"another process has been mounting {self.location} for {_TIMEOUT_S:g} s"
                    raise DirectoryUnusableError(msg)
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)


def _is_entry(one: object) -> bool:
    return isinstance(one, list) and len(one) == len(("sha256", "bytes", "time"))


def _place(blob: Blob, built: Path, path: str) -> list[Any]:
    """Make one file of a mount: a hard link, or on another volume a verified copy."""
    target = built / path if path else built
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob.path, target)
    except FileNotFoundError as error:
        msg = f"{blob.path} was deleted meanwhile: pull again"
        raise DirectoryUnusableError(msg) from error
    except OSError:  # another volume, one without links, or one with too many to this file
        _copy(blob, target)
    return [blob.sha256, blob.size, target.lstat().st_mtime_ns]


def _copy(blob: Blob, target: Path) -> None:
    digest = hashlib.sha256()
    with blob.path.open("rb", buffering=0) as source, target.open("xb", buffering=0) as copy:
        while data := source.read(_COPIED_BYTES):
            digest.update(data)
            write_all(copy.fileno(), memoryview(data))
        os.fchmod(copy.fileno(), 0o444)
        os.fsync(copy.fileno())
    if digest.hexdigest() != blob.sha256:
        blob.path.unlink(missing_ok=True)
        msg = f"{blob.path} is damaged ({SHA256}) and was deleted: pull again"
        raise DirectoryUnusableError(msg)


def _check_room(root: Path, blobs: Mapping[str, Blob]) -> None:
    """Raise `DirectoryFullError` if copies are needed and do not fit."""
    device = root.stat().st_dev
    needed = sum(blob.size for blob in blobs.values() if blob.path.lstat().st_dev != device)
    if needed and needed > measure(root, None).room:
        raise full(root, needed)


def _files(location: Path) -> dict[str, tuple[int, int]]:
    """Bytes and time of writing of each file below `location`; of itself, as "", if it is one."""
    try:
        status = location.lstat()
    except OSError:
        return {}
    if not stat.S_ISDIR(status.st_mode):
        return {"": (status.st_size, status.st_mtime_ns)}
    found = {}
    for folder, folders, names in os.walk(location):
        below = os.path.relpath(folder, location)
        links = [one for one in folders if Path(folder, one).is_symlink()]
        for name in (*names, *links):
            status = Path(folder, name).lstat()
            path = posixpath.normpath(posixpath.join(below, name))
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def _sync_folders(built: Path) -> None:
    for folder, _, _ in os.walk(built):
        sync_directory(Path(folder))
