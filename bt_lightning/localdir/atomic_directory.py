"""Writes that survive a power cut: fsync, rename, fsync the directory; and temporaries that do not.

A temporary directory is owned through an exclusive `flock` on itself, which the kernel drops when
its process dies, however it dies. So a sweep can tell what is being written from what is rubbish
without a clock, a process id or a heartbeat. Source: flock(2), rename(2).
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
from bt_lightning.layout import DOT_DIR, check_checkpoint_id
from bt_lightning.localdir import rename_noreplace
from bt_lightning.localdir.directory_walk import entries
from bt_lightning.localdir.file_locks import lock, naming, try_lock
from bt_lightning.localdir.fsync import open_directory, sync_directory, write_out
from bt_lightning.localdir.local_checkpoints import read_manifest
from bt_lightning.localdir.rename_noreplace import RENAME_EXCHANGE, rename_new
from bt_lightning.localdir.small_files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIES = 8
_MOST = 10_000
_REPLACED = "replaced-"
_DELETED = "deleted-"
_NOTE = "origin"
_CONTENT = "content"


def temporaries(root: Path) -> Path:
    """Where directories are built before they get their final name; on the volume of `root`."""
    return root / DOT_DIR / "tmp"


def trash_dir(root: Path) -> Path:
    """Where directories lie between losing their name and being gone."""
    return root / DOT_DIR / "trash"


def partials_dir(root: Path) -> Path:
    """Where downloads lie until they are whole; a later fetch goes on with them."""
    return root / DOT_DIR / "partial"


@contextlib.contextmanager
def temporary(root: Path) -> Iterator[Path]:
    """Yield a new, owned directory on the volume of `root`; what is left of it goes at the end."""
    path, owner = _owned(temporaries(root))
    try:
        yield path
    finally:
        discard(path)  # gone after a rename; after an exchange, what was replaced
        os.close(owner)


def publish_directory(built: Path, final: Path, root: Path, *, replace: bool = True) -> None:
    """Give the finished directory `built` its `final` name, durably; replace what is there.

    Without `replace`, what is there stays, and `FileExistsError` is raised.

    Readers see the old directory or the new one, each whole. Where the kernel or the file system
    cannot exchange two names, the old directory waits in the trash for the moment between two
    renames, and `sweep` puts it back if that moment was the last.
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
    """Take the name away first, so that nobody sees half a checkpoint; then delete the bytes.

    With `digest`, only if the manifest there is still the one with that digest: somebody may just
    have put a newer generation in its place. One rename, which needs no room where the trash is
    there already (`make_trash`). Returns whether this call took the name away.
    """
    make_trash(root)
    waiting = trash_dir(root) / f"{_DELETED}{uuid.uuid4().hex}"
    try:
        with naming(root):
            if digest is not None and read_manifest(path).digest != digest:
                return False
            os.rename(path, waiting)
    except FileNotFoundError:  # or `CheckpointNotFoundError`
        return False
    sync_directory(path.parent)
    discard(waiting)
    return True


def make_trash(root: Path) -> None:
    """Have the trash, before the disk is full: a new directory takes room."""
    trash_dir(root).mkdir(parents=True, exist_ok=True)


def sweep_trash(root: Path) -> None:
    """Delete what a killed process had begun to delete; safe beside a live one."""
    for waiting in children(trash_dir(root)):
        if waiting.name.startswith(_DELETED):
            discard(waiting)


def sweep(root: Path) -> list[Path]:
    """Delete what dead processes left under `root`; return the directories that were put back.

    Called once at the start of a run, before anything is written. A directory that was taken away
    to be replaced, and whose name is still free, goes back: its process died between two renames.
    """
    restored = []
    for waiting in children(trash_dir(root)):
        final = _origin(waiting, root) if waiting.name.startswith(_REPLACED) else None
        if final is not None and not os.path.lexists(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(waiting / _CONTENT, final)
            sync_directory(final.parent)
            restored.append(final)
        discard(waiting)
    sweep_temporaries(root)
    return restored


def sweep_temporaries(root: Path) -> None:
    """Delete what dead processes were building under `root`; safe beside live ones."""
    for path in _ownerless(temporaries(root)):
        discard(path)


def tidy(root: Path) -> None:
    """Remove the dot directory of `root` if nothing is in it."""
    for path in (temporaries(root), trash_dir(root), partials_dir(root), root / DOT_DIR):
        with contextlib.suppress(OSError):
            path.rmdir()


def discard(path: Path) -> None:
    """Delete whatever `path` is; what resists is left to the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def children(path: Path) -> list[Path]:
    """What lies in the directory `path`, in order; nothing if there is none.

    Of millions, the first that are told: the others are left to the next call.
    """
    try:
        return sorted(Path(one.path) for one in itertools.islice(entries(str(path)), _MOST))
    except FileNotFoundError:
        return []


def _owned(parent: Path) -> tuple[Path, int]:
    """A new directory in `parent`, and the descriptor whose lock says that it has an owner."""
    for left in reversed(range(_TRIES)):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with open_directory(parent) as gate:
                lock(gate, fcntl.LOCK_SH)  # no sweep between making it and locking it
                path = parent / uuid.uuid4().hex
                path.mkdir()  # its mode is the checkpoint's, as the umask says
                owner = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try_lock(owner)
                return path, owner
        except FileNotFoundError:  # another process has just tidied the empty parent away
            if not left:
                raise
    raise AssertionError


def _ownerless(parent: Path) -> list[Path]:
    """Temporaries whose owner is dead; none while a process is just making one."""
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
    """Give `built` the name `final` in two renames; the old one is put back if the second fails."""
    waiting = _set_aside(final, root)
    try:
        os.rename(built, final)
    except BaseException:
        if not os.path.lexists(final):
            os.rename(waiting / _CONTENT, final)  # if this fails too, the next sweep does it
        raise
    sync_directory(final.parent)
    discard(waiting)


def _set_aside(path: Path, root: Path) -> Path:
    """Move `path` into the trash with a note of where it was; return its place there."""
    make_trash(root)
    waiting = Path(tempfile.mkdtemp(prefix=_REPLACED, dir=trash_dir(root)))
    with (waiting / _NOTE).open("wb") as note:
        write_out(note, path.relative_to(root).as_posix().encode())
    for folder in (waiting, trash_dir(root), root / DOT_DIR):
        sync_directory(folder)
    try:
        os.rename(path, waiting / _CONTENT)
    except OSError:
        discard(waiting)
        raise
    return waiting


def _origin(waiting: Path, root: Path) -> Path | None:
    """Where the content of `waiting` was: as its note says, else as its own manifest says."""
    if not os.path.lexists(waiting / _CONTENT):
        return None
    try:
        return root / check_checkpoint_id(read_small_file(waiting / _NOTE, RECORD).decode())
    except (OSError, ValueError):
        pass
    try:
        return root / read_manifest(waiting / _CONTENT).checkpoint_id
    except (OSError, ValueError):
        return None  # no checkpoint, and nobody knows its name
