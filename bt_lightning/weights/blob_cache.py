"""A cache of files named by the SHA-256 of their bytes, shared by any number of processes.

`blobs/<2>/<sha256>` holds bytes and appears by one rename, whole and durable. A note beside it,
`<sha256>.json`, has its size and time of writing: a blob that was written to since is not used.
`known/<name>` says which blob a source's file is. `incoming/<name>` holds what has not arrived
whole; whoever downloads into it holds a `flock` on it, which ends with its process, and the next
one goes on with what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, DirectoryFullError, StoreTransientError
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.atomic_directory import children, discard
from bt_lightning.localdir.disk_space import is_full, measure, usage
from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.fsync import make_directories, sync_directory
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.weights.file_digests import SHA256, compared, digests_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_POLL_S: Final = 0.05
_STALLED_S: Final = 120.0
"""How long another process may write nothing to what both want."""
_LEFT_S: Final = 14 * 86400.0
"""After this time nobody is expected to go on with what was interrupted."""
_READ_ONLY: Final = 0o444


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of the cache."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    mtime_ns: int
    verified: str
    """The digest that was compared with one of the source; `size` where it told none."""


class BlobCache:
    """The cache in one folder. Used by several threads and processes.

    Raises, from every method that writes, `DirectoryFullError` and `OSError`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self, identity: str, size: int) -> Blob | None:
        """The blob of a source's file; None if it is not here, or was written to since."""
        if not identity:
            return None
        try:
            note = read_json(self._note(identity), RECORD)
            blob = self._blob(str(note[SHA256]), str(note["verified"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return blob if blob is not None and blob.size == size else None

    def bring(
        self,
        name: str,
        identity: str,
        size: int,
        fetch: Callable[[Path], tuple[Path, Mapping[str, str]]],
    ) -> Blob:
        """The blob of a source's file, `name` in messages, brought by `fetch` unless it is here.

        `fetch` gets a folder, and returns the file in it and the digests that it must have. Another
        process that brings the same file is waited for.

        Raises:
            CheckpointCorruptError: the file has another size or digest; nothing is kept.
            StoreTransientError: another process makes no progress with the same file.
            DirectoryFullError: the disk is full.
        """
        with self._incoming(identity or os.urandom(16).hex()) as place:
            found = self.known(identity, size)
            if found is not None:
                discard(place)
                return found
            try:
                return self._keep(name, identity, size, place, fetch)
            except CheckpointCorruptError:
                discard(place)
                raise
            except OSError as error:
                if not is_full(error) or isinstance(error, DirectoryFullError):
                    raise
                raise full(self.folder, size) from error
            finally:
                if not identity:
                    discard(place)

    def arrived(self, identity: str) -> int:
        """Bytes of the disk that an interrupted download of a source's file has taken already."""
        return usage(self._place(identity)) if identity else 0

    def sweep(self) -> None:
        """Delete what was interrupted long ago and belongs to no living process."""
        for place in children(self.folder / "incoming"):
            with contextlib.suppress(OSError):
                if time.time() - _newest(place) / 1e9 > _LEFT_S:
                    with _owned(place) as mine:
                        if mine:
                            discard(place)

    def _keep(
        self,
        name: str,
        identity: str,
        size: int,
        place: Path,
        fetch: Callable[[Path], tuple[Path, Mapping[str, str]]],
    ) -> Blob:
        file, expected = fetch(place)
        read, digests = digests_of(file, {SHA256, *expected})
        if read != size:
            msg = f"{name} came with {read:,} bytes, expected {size:,}: pull again"
            raise CheckpointCorruptError(msg)
        verified = compared(name, expected, digests)
        final = self._at(digests[SHA256])
        blob = self._blob(digests[SHA256], verified)
        if blob is None or blob.size != size:
            make_directories(final.parent)
            with file.open("rb") as stream:
                os.fchmod(stream.fileno(), _READ_ONLY)
                os.fsync(stream.fileno())
                written = os.fstat(stream.fileno()).st_mtime_ns
            note = {"size": size, "mtime_ns": written}
            replace_small(_beside(final), _json(note), part=f".{os.urandom(8).hex()}.part")
            file.replace(final)
            sync_directory(final.parent)
            blob = Blob(final, digests[SHA256], size, written, verified)
        if identity:
            said = {SHA256: blob.sha256, "verified": verified}
            part = f".{os.urandom(8).hex()}.part"
            replace_small(self._note(identity), _json(said), part=part)
        discard(place)
        return blob

    def _blob(self, sha256: str, verified: str) -> Blob | None:
        """The blob of that digest, if it is as it was written."""
        path = self._at(sha256)
        try:
            status = path.lstat()
            note = read_json(_beside(path), RECORD)
            same = (status.st_size, status.st_mtime_ns) == (note["size"], note["mtime_ns"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Blob(path, sha256, status.st_size, status.st_mtime_ns, verified) if same else None

    @contextlib.contextmanager
    def _incoming(self, identity: str) -> Iterator[Path]:
        """Yield the folder for a file that is to come, which this process alone may use."""
        place = self._place(identity)
        seen, since = 0, time.monotonic()
        while True:
            make_directories(place)
            with contextlib.suppress(FileNotFoundError), _owned(place) as mine:
                if mine:
                    yield place
                    return
            newest = _newest(place)
            if newest != seen:
                seen, since = newest, time.monotonic()
            if time.monotonic() - since > _STALLED_S:
                msg = (
                    f"another process has been downloading into {place} without progress for"
                    f" {_STALLED_S:.0f} s: end it, and start again"
                )
                raise StoreTransientError(msg)
            time.sleep(_POLL_S)

    def _at(self, sha256: str) -> Path:
        if len(sha256) != hashlib.sha256().digest_size * 2 or not sha256.isalnum():
            msg = f"{sha256!r} is no SHA-256"
            raise ValueError(msg)
        return self.folder / "blobs" / sha256[:2] / sha256

    def _place(self, identity: str) -> Path:
        return self.folder / "incoming" / _hash(identity)

    def _note(self, identity: str) -> Path:
        return self.folder / "known" / f"{_hash(identity)}.json"


def full(folder: Path, needed: int) -> DirectoryFullError:
    """The error for a volume without room for `needed` bytes."""
    return DirectoryFullError(
        f"the weights do not fit on the volume of {folder}: they need {needed:,} more bytes,"
        f" {measure(folder, None).free:,} are free. Free some space, or name a cache and a root on"
        " another volume"
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


def _hash(identity: str) -> str:
    return hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=20).hexdigest()


@contextlib.contextmanager
def _owned(place: Path) -> Iterator[bool]:
    """Yield whether this process has the folder's lock, and the folder is still that one."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), place.lstat())
    finally:
        os.close(descriptor)


def _newest(place: Path) -> int:
    """The newest change below `place`, in nanoseconds; 0 if it is gone."""
    newest = 0
    for folder, _, names in os.walk(place):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            with contextlib.suppress(OSError):
                newest = max(newest, os.lstat(path).st_mtime_ns)
    return newest
