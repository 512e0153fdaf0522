"""Writes that survive a power cut: fsync, rename, fsync the directory; and temporaries that do not.

A temporary directory is owned through an exclusive `flock` on itself, which the kernel drops when
its process dies, however it dies. So a sweep can tell what is being written from what is rubbish
without a clock, a process id or a heartbeat. Source: flock(2), rename(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import DirectoryUnusableError
from bt_lightning.layout import DOT_DIR, check_checkpoint_id
from bt_lightning.localdir.digest import Hasher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bt_lightning.manifest import FileEntry

_WRITE_BYTES = 16 * 1024 * 1024
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_TRIES = 8
_REPLACED = "replaced-"
_DELETED = "deleted-"
_NOTE = "origin"
_CONTENT = "content"
_HINTS = {
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EROFS: "the volume is mounted read-only, so mount it for writing",
    errno.ENOTDIR: "a file stands where a directory should be, so move it away",
    errno.EEXIST: "a file stands where a directory should be, so move it away",
    errno.ENOSPC: "the volume is full, so free some space",
}


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def write_file(file: Path, path: str, pieces: Iterable[memoryview | bytes]) -> FileEntry:
    """Write `pieces` to the new `file`, make them durable, and describe them as `path`."""
    hasher = Hasher()
    with file.open("xb", buffering=0) as stream:
        for piece in pieces:
            view = memoryview(piece)
            hasher.update(view)
            while view:
                view = view[stream.write(view[:_WRITE_BYTES]) :]
        os.fsync(stream.fileno())
    return hasher.entry(path)


def temporaries(root: Path) -> Path:
    """Where directories are built before they get their final name; on the volume of `root`."""
    return root / DOT_DIR / "tmp"


def trash(root: Path) -> Path:
    """Where directories lie between losing their name and being gone."""
    return root / DOT_DIR / "trash"


def usable_root(root: Path) -> Path:
    """Create `root` if needed and prove that directories can be built and files renamed in it.

    Raises:
        DirectoryUnusableError: it cannot, with the reason and what to do.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))
        with temporary(root) as path:
            (path / "probe").write_bytes(b"bt_lightning")
            (path / "probe").rename(path / "renamed")
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check the volume")
        msg = (
            f"the checkpoint directory {root} cannot be used ({error.strerror or error}): {hint},"
            " or set BT_CHECKPOINT_DIR to another directory"
        )
        raise DirectoryUnusableError(msg) from error
    return root


@contextlib.contextmanager
def temporary(root: Path) -> Iterator[Path]:
    """Yield a new, owned directory on the volume of `root`; what is left of it goes at the end."""
    path, owner = _owned(temporaries(root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # after a rename it is not there any more
        os.close(owner)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock that dies with this process; False if another process has it.

    A file system without locks counts as free: one writer to a directory is the rule there.
    """
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def publish_directory(built: Path, final: Path, root: Path) -> None:
    """Give the finished directory `built` its `final` name, durably; replace what is there.

    Readers see the old directory or the new one, each whole. Where the kernel or the file system
    cannot exchange two names, the old directory waits in the trash for the moment between two
    renames, and `sweep` puts it back if that moment was the last.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    sync_directory(built)
    if final.is_symlink() or final.is_file():
        final.unlink()
    if not final.exists():
        built.rename(final)
    elif not _renameat2(built, final, _RENAME_EXCHANGE):
        waiting = _into_trash(final, root, _REPLACED)
        built.rename(final)
        shutil.rmtree(waiting)
    parent = final.parent
    sync_directory(parent)
    while parent != root and root in parent.parents:
        parent = parent.parent
        sync_directory(parent)


def delete_directory(path: Path, root: Path) -> None:
    """Take the name away first, so that nobody sees half a checkpoint; then delete the bytes."""
    with contextlib.suppress(FileNotFoundError):
        waiting = _into_trash(path, root, _DELETED)
        sync_directory(path.parent)
        shutil.rmtree(waiting, ignore_errors=True)


def empty_trash(root: Path) -> None:
    """Delete what a killed process had begun to delete; safe beside a live one."""
    for waiting in _children(trash(root)):
        if waiting.name.startswith(_DELETED):
            shutil.rmtree(waiting, ignore_errors=True)


def rename_new(one: Path, other: Path) -> None:
    """Rename `one` to `other` if that name is free; else raise `FileExistsError`."""
    if not _renameat2(one, other, _RENAME_NOREPLACE):
        os.link(one, other)  # two steps: a kill between them leaves the old name as well
        one.unlink()


def sweep(root: Path) -> list[Path]:
    """Delete what dead processes left under `root`; return the directories that were put back.

    Called once at the start of a run, before anything is written. A directory that was taken away
    to be replaced, and whose name is still free, goes back: its process died between two renames.
    """
    restored = []
    for waiting in _children(trash(root)):
        final = _origin(waiting, root) if waiting.name.startswith(_REPLACED) else None
        if final is not None and not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            (waiting / _CONTENT).rename(final)
            sync_directory(final.parent)
            restored.append(final)
        shutil.rmtree(waiting, ignore_errors=True)
    for path in _ownerless(temporaries(root)):
        shutil.rmtree(path, ignore_errors=True)
    return restored


def tidy(root: Path) -> None:
    """Remove the dot directory of `root` if nothing is in it."""
    for path in (temporaries(root), trash(root), root / DOT_DIR):
        with contextlib.suppress(OSError):
            path.rmdir()


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def _owned(parent: Path) -> tuple[Path, int]:
    """A new directory in `parent`, and the descriptor whose lock says that it has an owner."""
    for left in reversed(range(_TRIES)):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with _opened(parent) as gate:
                _lock(gate, fcntl.LOCK_SH)  # no sweep between making it and locking it
                path = Path(tempfile.mkdtemp(dir=parent))
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
    with _opened(parent) as gate:
        if not try_lock(gate):
            return []
        return [path for path in _children(parent) if not _is_owned(path)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_owned(path: Path) -> bool:
    try:
        with _opened(path) as descriptor:
            return not try_lock(descriptor)
    except OSError:
        return False


def _into_trash(path: Path, root: Path, kind: str) -> Path:
    """Move `path` into the trash with a note of where it was; return its place there."""
    trash(root).mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(prefix=kind, dir=trash(root)))
    (waiting / _NOTE).write_text(path.relative_to(root).as_posix())
    try:
        path.rename(waiting / _CONTENT)
    except OSError:
        shutil.rmtree(waiting, ignore_errors=True)
        raise
    return waiting


def _origin(waiting: Path, root: Path) -> Path | None:
    """Where the content of `waiting` was, if its note is whole and names a checkpoint of `root`."""
    try:
        note = (waiting / _NOTE).read_text()
        return root / check_checkpoint_id(note) if (waiting / _CONTENT).is_dir() else None
    except (OSError, ValueError):
        return None


def _renameat2(one: Path, other: Path, flag: int) -> bool:
    """Call renameat2(2); False if this kernel, C library or file system does not know `flag`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))
