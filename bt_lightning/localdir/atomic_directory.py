"""Publish, replace and delete directories atomically and durably, and sweep what a kill left.

A directory is built under a temporary name, fsynced, and renamed. Its writer holds an exclusive
`flock` on it, which the kernel drops when the process dies, however it dies. So a sweep can tell
unfinished directories from abandoned ones without a clock, a process id or a heartbeat. Source:
flock(2), rename(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir import rename_noreplace
from bt_lightning.localdir.directory_walk import entries
from bt_lightning.localdir.file_locks import lock, naming, try_lock
from bt_lightning.localdir.fsync import open_directory, sync_directory, write_out
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.localdir.rename_noreplace import RENAME_EXCHANGE, rename_new
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.path_layout import DOT_DIR, check_checkpoint_id

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIES = 8
_MOST = 10_000
_REPLACED = "replaced-"
_DELETED = "deleted-"
_NOTE = "origin"
_CONTENT = "content"


def temporaries(root: Path) -> Path:
    """The folder in which directories are built before they get their final name."""
    return root / DOT_DIR / "tmp"


def trash_dir(root: Path) -> Path:
    """The folder for directories that lost their name and are not deleted yet."""
    return root / DOT_DIR / "trash"


def partials_dir(root: Path) -> Path:
    """The folder for downloads until they are whole; a later fetch resumes them."""
    return root / DOT_DIR / "partial"


def gathers(root: Path) -> Path:
    """The folder in which the parts of all ranks come together (`localdir.gather_directory`)."""
    return root / DOT_DIR / "gather"


@contextlib.contextmanager
def temporary(root: Path) -> Iterator[Path]:
    """Yield a new, owned directory on the volume of `root`; delete it at the end if still there."""
    path, owner = _make_owned(temporaries(root))
    try:
        yield path
    finally:
        discard(path)  # not there after a rename; after an exchange, the replaced directory
        os.close(owner)


def publish_directory(built: Path, final: Path, root: Path, *, replace: bool = True) -> None:
    """Rename the finished directory `built` to `final`, durably; replace what is there.

    Without `replace`, an existing `final` stays, and `FileExistsError` is raised.

    Readers see the old directory or the new one, each whole. Where the kernel or the file system
    cannot exchange two names, the old directory lies in the trash between two renames, and `sweep`
    restores it if the process died there.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    sync_directory(built)
    with naming(root):
        if not replace:
            rename_new(built, final)
        elif not os.path.lexists(final):
            os.rename(built, final)
        elif not rename_noreplace.renameat2(built, final, RENAME_EXCHANGE):
            _replace(built, final, root)
    parent = final.parent
    sync_directory(parent)
    while parent != root and root in parent.parents:
        parent = parent.parent
        sync_directory(parent)


def delete_directory(path: Path, root: Path, digest: str | None = None) -> bool:
    """Move the directory to the trash by one rename, so that nobody sees half of it; delete it.

    With `digest`, only if its manifest still has that digest: a newer generation may have taken its
    place. The rename needs no room if the trash exists (`make_trash`). Returns whether this call
    removed the directory's name.
    """
    make_trash(root)
    trashed = trash_dir(root) / f"{_DELETED}{uuid.uuid4().hex}"
    try:
        with naming(root):
            if digest is not None and read_manifest(path).digest != digest:
                return False
            os.rename(path, trashed)
    except FileNotFoundError:  # or `CheckpointNotFoundError`
        return False
    sync_directory(path.parent)
    discard(trashed)
    return True


def make_trash(root: Path) -> None:
    """Create the trash folder; called before the disk is full, since a new folder needs room."""
    trash_dir(root).mkdir(parents=True, exist_ok=True)


def sweep_trash(root: Path) -> None:
    """Finish the deletions of killed processes; safe beside living ones."""
    for trashed in children(trash_dir(root)):
        if trashed.name.startswith(_DELETED):
            discard(trashed)


def sweep(root: Path) -> list[Path]:
    """Delete what dead processes left under `root`; return the directories that were restored.

    Called once at the start of a run, before anything is written. A directory in the trash that was
    to be replaced, and whose name is still free, is restored: its process died between two renames.
    """
    restored = []
    for trashed in children(trash_dir(root)):
        final = _original_path(trashed, root) if trashed.name.startswith(_REPLACED) else None
        if final is not None and not os.path.lexists(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(trashed / _CONTENT, final)
            sync_directory(final.parent)
            restored.append(final)
        discard(trashed)
    sweep_temporaries(root)
    return restored


def sweep_temporaries(root: Path) -> None:
    """Delete the temporary directories of dead processes under `root`; safe beside living ones."""
    for path in _without_owner(temporaries(root)):
        discard(path)


def tidy(root: Path) -> None:
    """Remove the empty folders of this package below `root`, and its dot folder if empty."""
    folders = (temporaries(root), trash_dir(root), partials_dir(root), gathers(root))
    for path in (*folders, root / DOT_DIR):
        with contextlib.suppress(OSError):
            path.rmdir()


def discard(path: Path) -> None:
    """Delete `path`, whatever it is; what cannot be deleted is left to the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def children(path: Path) -> list[Path]:
    """The sorted entries of the directory `path`; empty if there is no such directory.

    At most the first 10,000 that the kernel lists; the others are left to the next call.
    """
    try:
        return sorted(Path(one.path) for one in itertools.islice(entries(str(path)), _MOST))
    except FileNotFoundError:
        return []


def _make_owned(parent: Path) -> tuple[Path, int]:
    """A new directory in `parent`, and the descriptor whose lock owns it."""
    for left in reversed(range(_TRIES)):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with open_directory(parent) as gate:
                lock(gate, fcntl.LOCK_SH)  # no sweep between mkdir and lock
                path = parent / uuid.uuid4().hex
                path.mkdir()  # its mode, by the umask, becomes the checkpoint's
                owner = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try_lock(owner)
                return path, owner
        except FileNotFoundError:  # another process has just removed the empty parent
            if not left:
                raise
    raise AssertionError


def _without_owner(parent: Path) -> list[Path]:
    """Temporary directories whose owner is dead; none while a process is creating one."""
    if not parent.is_dir():
        return []
    with open_directory(parent) as gate:
        if not try_lock(gate):
            return []
        return [path for path in children(parent) if not _is_owned(path)]


def _is_owned(path: Path) -> bool:
    try:
        with open_directory(path) as descriptor:
            return not try_lock(descriptor)
    except OSError:
        return False


def _replace(built: Path, final: Path, root: Path) -> None:
    """Rename `built` to `final` in two renames; the old one is restored if the second fails."""
    trashed = _move_to_trash(final, root)
    try:
        os.rename(built, final)
    except BaseException:
        if not os.path.lexists(final):
            os.rename(trashed / _CONTENT, final)  # if this fails too, the next sweep does it
        raise
    sync_directory(final.parent)
    discard(trashed)


def _move_to_trash(path: Path, root: Path) -> Path:
    """Move `path` into a new folder of the trash, with a note of its path; return the folder."""
    make_trash(root)
    trashed = Path(tempfile.mkdtemp(prefix=_REPLACED, dir=trash_dir(root)))
    with (trashed / _NOTE).open("wb") as note:
        write_out(note, path.relative_to(root).as_posix().encode())
    for folder in (trashed, trash_dir(root), root / DOT_DIR):
        sync_directory(folder)
    try:
        os.rename(path, trashed / _CONTENT)
    except OSError:
        discard(trashed)
        raise
    return trashed


def _original_path(trashed: Path, root: Path) -> Path | None:
    """The path that the content of `trashed` had: by its note, else by its own manifest."""
    if not os.path.lexists(trashed / _CONTENT):
        return None
    try:
        return root / check_checkpoint_id(read_small_file(trashed / _NOTE, RECORD).decode())
    except (OSError, ValueError):
        pass
    try:
        return root / read_manifest(trashed / _CONTENT).checkpoint_id
    except (OSError, ValueError):
        return None  # not a checkpoint, and its name is unknown
