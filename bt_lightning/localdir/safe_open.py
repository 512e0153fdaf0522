"""Open files safely in directories where other users may have put anything under their names.

An open never waits, as that of a FIFO would, and only regular files are opened: opening a device
may have effects, and `/dev/zero` has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, DirectoryUnusableError

if TYPE_CHECKING:
    from pathlib import Path

QUIET: Final = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_ODD: Final = {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV}
"""The errno values of open(2) for links, sockets, pipes, directories and devices."""
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path | str) -> int:
    """A descriptor for reading the regular file `path`; never waits.

    Raises:
        CheckpointCorruptError: `path` is no regular file.
        OSError: there is no file, or the disk refused.
    """
    # before the open: opening a device may have effects
    _check_kind(os.stat(path), path)  # noqa: PTH116 - ten thousand of them in a list
    descriptor = os.open(path, os.O_RDONLY | QUIET)
    try:
        _check_kind(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a regular file that this package writes, or creates by `flags`; never waits.

    Raises:
        DirectoryUnusableError: `path` is no regular file.
        OSError: the disk refused.
    """
    try:
        descriptor = os.open(path, flags | QUIET | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno not in _ODD:
            raise
        raise _not_ours(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_ours(path)
    return descriptor


def _check_kind(status: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(status.st_mode):
        msg = f"{path} is {_kind(status.st_mode)}, expected a regular file"
        raise CheckpointCorruptError(msg)


def _not_ours(path: Path) -> DirectoryUnusableError:
    try:
        what = _kind(os.lstat(path).st_mode)
    except OSError:
        what = "no file"
    return DirectoryUnusableError(f"{path} is {what}, expected a regular file: move it away")


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "something unknown")
