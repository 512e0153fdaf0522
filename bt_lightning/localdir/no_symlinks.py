"""Open, create, rename and walk files below a root without following symbolic links.

Otherwise a user who may write below the root could redirect a read, a write or a deletion anywhere.
So each part of a path is opened from its folder with `O_NOFOLLOW`. The root itself may be a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.fsync import make_directories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for opening a path that may be a link, a pipe or a device."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LONGEST: Final = 4096
"""Bytes of a path (PATH_MAX): the kernel takes no longer ones."""


def split(path: str) -> tuple[str, str]:
    """The folder of `path`, and its last name; `.` and `..` are refused."""
    parts = _parts(path)
    if not parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return "/".join(parts[:-1]), parts[-1]


@contextlib.contextmanager
def folder(root: Path, path: str) -> Iterator[int]:
    """A descriptor (`O_PATH`) of a folder below `root`; "" is `root` itself.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        OSError: with `ELOOP`, a part of `path` is a symbolic link.
    """
    descriptor = os.open(root, _STEP)
    try:
        for part in _parts(path):
            descriptor = _into(descriptor, part, path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def made_folder(root: Path, path: str) -> Iterator[int]:
    """As `folder`, but missing folders are made, durably; the descriptor can be fsynced."""
    make_directories(root)
    descriptor = os.open(root, _STEP)
    try:
        for part in _parts(path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
                sync(descriptor)
            descriptor = _into(descriptor, part, path)
        listed = os.open(".", _LISTED, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    try:
        yield listed
    finally:
        os.close(listed)


def sync(folder: int) -> None:
    """Make the entries of a folder durable."""
    listed = os.open(".", _LISTED, dir_fd=folder)
    try:
        os.fsync(listed)
    finally:
        os.close(listed)


def open_file(root: Path, path: str) -> int:
    """A descriptor for reading the regular file `path` below `root`; never waits for a pipe.

    Raises:
        FileNotFoundError: there is no regular file of that name.
        OSError: with `ELOOP`, a part of `path` is a symbolic link.
    """
    parent, name = split(path)
    with folder(root, parent) as within:
        try:
            descriptor = os.open(name, READ, dir_fd=within)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise link_in_the_way(path) from error
            if error.errno != errno.ENXIO:  # a socket, or a device that is not there
                raise
            raise _no_file(path) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _no_file(path)


def new_file(folder: int, name: str) -> int:
    """A descriptor for writing a new, empty file `name`; an existing one is unlinked.

    It is not truncated: it may be a hard link to a committed file, which must not change.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, _NEW, 0o666, dir_fd=folder)


def rename(folder: int, part: str, name: str, descriptor: int) -> None:
    """Rename `part`, which is open as `descriptor`, to `name` in the same folder.

    Raises:
        FileExistsError: `part` is no longer that file: another writer has replaced it.
    """
    if not os.path.samestat(
        os.fstat(descriptor), os.stat(part, dir_fd=folder, follow_symlinks=False)
    ):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), part)
    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def walk_no_symlinks(root: Path, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below the folder `path` of `root`: its path below `root`, its `stat`.

    A folder that is not there, or is deleted meanwhile, counts as empty. Links, pipes and devices
    are skipped. Any other folder that cannot be read is an error, never an empty folder.

    Raises:
        OSError: a folder cannot be read; with `ELOOP`, a part of `path` is a symbolic link.
    """
    pending = ["/".join(_parts(path))]
    first = True
    while pending:
        parent = pending.pop()
        try:
            yield from _files_in(root, parent, pending)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if first or error.errno != errno.ELOOP:  # a folder that became a link meanwhile
                raise
        first = False


def _files_in(root: Path, parent: str, pending: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    with folder(root, parent) as within:
        listed = os.open(".", _LISTED, dir_fd=within)
    try:
        with os.scandir(listed) as entries:
            for entry in entries:
                path = f"{parent}/{entry.name}" if parent else entry.name
                if len(os.fsencode(path)) >= _LONGEST:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield path, entry.stat(follow_symlinks=False)
    finally:
        os.close(listed)


def link_in_the_way(path: str) -> OSError:
    """The error for a path that contains a symbolic link."""
    msg = "a symbolic link is in the way; links are not followed there"
    return OSError(errno.ELOOP, msg, path)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if not {".", ".."}.isdisjoint(parts):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return parts


def _into(descriptor: int, part: str, path: str) -> int:
    """A descriptor of the folder `part` in a folder, whose own is closed if that succeeds."""
    try:
        deeper = os.open(part, _STEP | os.O_NOFOLLOW, dir_fd=descriptor)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(part, dir_fd=descriptor, follow_symlinks=False).st_mode):
            raise link_in_the_way(path) from error
        raise
    os.close(descriptor)
    return deeper


def _no_file(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
