"""Renames that never replace an existing file: of several writers, one gets the name.

The kernel does it in one step where it can (renameat2(2), link(2)). On file systems that support
neither, such as some FUSE and SMB ones, a writer first creates a claim file beside the name, with
`O_EXCL`, then checks that the name is free, and renames.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
import uuid
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.fsync import open_directory, write_out
from bt_lightning.localdir.libc import libc
from bt_lightning.localdir.no_symlinks import new_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RENAME_EXCHANGE: Final = 2
_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100
_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_CLAIM_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST_NAME: Final = 200
_POLL_S: Final = 0.01
_STALE_S: Final = 2.0
"""Age after which a claim may be that of a killed process; others last a moment."""
_LIMIT_S: Final = 30.0


def write_new(folder: int, name: str, data: bytes) -> None:
    """Create the small file `name` in a folder, whole and durable, if the name is free.

    `folder` is a descriptor that can be fsynced. The file has no name until it is complete
    (`O_TMPFILE`), or a temporary one where the file system cannot do that. Raises `FileExistsError`
    if `name` exists, and `FileNotFoundError` if the folder was deleted. Source: open(2).
    """
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder)
    except OSError as error:
        _raise_if_gone(folder, name, error)  # some file systems raise EPERM for a deleted folder
        if error.errno not in _NO_TMPFILE:
            raise
        _write_new_by_rename(folder, name, data)
    else:
        with os.fdopen(descriptor, "wb") as stream:
            write_out(stream, data)
            linked = _link_unnamed(folder, descriptor, name)
        if not linked:
            _write_new_by_rename(folder, name, data)
    os.fsync(folder)


def _link_unnamed(folder: int, descriptor: int, name: str) -> bool:
    """Link the file without a name to `name`; False without hard links or without `/proc`."""
    try:
        # without a dir_fd Python would call link(2), which cannot follow the link in /proc
        unnamed = f"/proc/self/fd/{descriptor}"
        os.link(unnamed, name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError as error:
        _raise_if_gone(folder, name, error)
        if error.errno not in _NO_LINKS | {errno.ENOENT, errno.EXDEV}:
            raise
        return False
    return True


def _raise_if_gone(folder: int, name: str, error: OSError) -> None:
    if not os.fstat(folder).st_nlink:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error


def _write_new_by_rename(folder: int, name: str, data: bytes) -> None:
    part = f".{uuid.uuid4().hex}.part"  # with a shared name, a writer could publish another's bytes
    descriptor = new_file(folder, part)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write_out(stream, data)
        rename_new_in(folder, part, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        raise


def rename_new_in(folder: int, part: str, name: str) -> None:
    """Rename the file `part` to `name` in one folder if `name` is free; as `rename_new`."""
    if renameat2(part, name, _RENAME_NOREPLACE, folder):
        return
    try:
        os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _claimed(folder, name):
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(part, dir_fd=folder)  # a kill before this leaves the old name as well


def rename_new(one: Path, other: Path) -> None:
    """Rename `one` to `other` if that name is free; else raise `FileExistsError`."""
    if renameat2(one, other, _RENAME_NOREPLACE):
        return
    if not one.is_dir():
        _rename_new_file(one, other)
        return
    try:
        os.rename(one, other)  # replaces an empty directory, and nothing else
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST}:
            raise _taken(str(other)) from error
        raise


def _rename_new_file(one: Path, other: Path) -> None:
    try:
        os.link(one, other)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open_directory(other.parent) as folder, _claimed(folder, other.name):
            os.rename(one, other)
    else:
        one.unlink()  # a kill before this leaves the old name as well


def renameat2(one: Path | str, other: Path | str, flag: int, folder: int = _AT_FDCWD) -> bool:
    """Rename by the system call; False if kernel, libc or file system do not support `flag`."""
    if not hasattr(libc(), "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if libc().renameat2(folder, names[0], folder, names[1], flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def _claimed(folder: int, name: str) -> Iterator[None]:
    """Hold the claim on `name` in a folder, after a check that `name` is free.

    Raises:
        FileExistsError: `name` exists.
        BlockingIOError: another process held the claim for half a minute.
    """
    claim = f".{name[:_LONGEST_NAME]}.claim"
    descriptor = _claim(folder, claim, name)
    try:
        if _inode(folder, name) is not None:
            raise _taken(name)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(claim, dir_fd=folder)
        os.close(descriptor)


def _claim(folder: int, claim: str, name: str) -> int:
    until = time.monotonic() + _LIMIT_S
    seen, since = None, 0.0
    while time.monotonic() < until:
        with contextlib.suppress(FileExistsError):
            flags = _CLAIM_FLAGS | os.O_CREAT | os.O_EXCL
            descriptor = os.open(claim, flags, 0o666, dir_fd=folder)
            status = os.fstat(descriptor)
            # another process may have broken this claim as stale before it was locked
            if try_lock(descriptor) and _inode(folder, claim) == (status.st_dev, status.st_ino):
                return descriptor
            os.close(descriptor)
        found = _inode(folder, claim)
        if found != seen:
            seen, since = found, time.monotonic()
        elif found is not None and time.monotonic() - since > _STALE_S:
            _break(folder, claim)
        time.sleep(_POLL_S)
    raise BlockingIOError(errno.EAGAIN, f"another process is taking the name {name}", claim)


def _break(folder: int, claim: str) -> None:
    """Delete a claim whose process is dead: then its lock is free."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(claim, _CLAIM_FLAGS, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            mine = (status.st_dev, status.st_ino)
            if try_lock(descriptor) and _inode(folder, claim) == mine:
                os.unlink(claim, dir_fd=folder)
        finally:
            os.close(descriptor)


def _inode(folder: int, name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _taken(name: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
