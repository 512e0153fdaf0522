"""Files below a root, reached folder by folder: no symbolic link below it is ever followed.

Whoever may write below a root could otherwise lead a read, a write or a deletion anywhere. The
root itself is the user's own, and may be a link.
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
"""How a file is opened that may be a link, a pipe or a device."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LONGEST: Final = 4096
"""Bytes of a path (PATH_MAX): nobody could name what lies deeper."""


def split(path: str) -> tuple[str, str]:
    """The folder that `path` lies in, and its last name; a path that leads upwards is refused."""
    parts = _parts(path)
    if not parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return "/".join(parts[:-1]), parts[-1]


@contextlib.contextmanager
def folder(root: Path, path: str) -> Iterator[int]:
    """A descriptor of a folder below `root`, to reach what is in it; "" is `root` itself.

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
    """As `folder`; those that are missing are made, and their names are durable. Can be synced."""
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
    """Make the names in a folder durable."""
    listed = os.open(".", _LISTED, dir_fd=folder)
    try:
        os.fsync(listed)
    finally:
        os.close(listed)


def open_file(root: Path, path: str) -> int:
    """A descriptor to read the regular file `path` below `root`; no pipe or device is waited for.

    Raises:
        FileNotFoundError: there is no regular file of that name.
        OSError: with `ELOOP`, a part of `path` is a symbolic link.
    """
    place, name = split(path)
    with folder(root, place) as within:
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
    """A descriptor to write an empty file of that name, which takes the place of what was there.

    What was there keeps its bytes: it may be a second name of a file that must not change.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, _NEW, 0o666, dir_fd=folder)


def rename(folder: int, part: str, name: str, descriptor: int) -> None:
    """Give the file that is open as `descriptor`, and called `part`, its name in the same folder.

    Raises:
        FileExistsError: another writer has taken `part` for a file of its own.
    """
    if not os.path.samestat(
        os.fstat(descriptor), os.stat(part, dir_fd=folder, follow_symlinks=False)
    ):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), part)
    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def walk_no_symlinks(root: Path, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below the folder `path` of `root`: its path below `root`, its status.

    A folder that is not there, or goes meanwhile, holds none. Links, pipes and devices are passed
    over. Any other folder that cannot be read is an error: it is not an empty one.

    Raises:
        OSError: a folder cannot be read; with `ELOOP`, a part of `path` is a symbolic link.
    """
    waiting = ["/".join(_parts(path))]
    first = True
    while waiting:
        place = waiting.pop()
        try:
            yield from _files_in(root, place, waiting)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if first or error.errno != errno.ELOOP:  # a folder that became a link meanwhile
                raise
        first = False


def _files_in(root: Path, place: str, waiting: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    with folder(root, place) as within:
        listed = os.open(".", _LISTED, dir_fd=within)
    try:
        with os.scandir(listed) as entries:
            for entry in entries:
                path = f"{place}/{entry.name}" if place else entry.name
                if len(os.fsencode(path)) >= _LONGEST:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield path, entry.stat(follow_symlinks=False)
    finally:
        os.close(listed)


def link_in_the_way(path: str) -> OSError:
    """The error of a path that a symbolic link is part of."""
    said = "a symbolic link is in the way, and none is followed there"
    return OSError(errno.ELOOP, said, path)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if not {".", ".."}.isdisjoint(parts):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return parts


def _into(descriptor: int, part: str, path: str) -> int:
    """The descriptor of a folder's folder; the one of the folder is closed if that succeeds."""
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
