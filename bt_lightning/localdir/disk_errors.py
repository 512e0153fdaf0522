"""What is said when a disk refuses: why, whether that may pass, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError, DirectoryFullError, DirectoryUnusableError
from bt_lightning.localdir.disk_space import FEW_FILES, is_full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HINTS: Final = {
    errno.EACCES: "give this user the right to write and read there",
    errno.EPERM: "give this user the right to write and read there",
    errno.EROFS: "the volume is mounted read-only, so mount it for writing",
    errno.ENOTDIR: "a file stands where a directory should be, so move it away",
    errno.EEXIST: "a file stands where a directory should be, so move it away",
    errno.ENOSPC: "the volume is full, so free some space",
    errno.EDQUOT: "the quota of this user is used up, so free some space or have it raised",
    errno.ESTALE: "the server of the volume does not know it any more, so mount it again",
}
_PASSING: Final = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.EBUSY,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    }
)
"""What a volume, or a machine, says that has a bad moment; or that somebody mounts anew."""


@contextlib.contextmanager
def directory_errors(root: Path) -> Iterator[None]:
    """Raise what the system refuses inside the block as an error that names `root` and the way out.

    Raises:
        DirectoryUnusableError: an `OSError` that was none of ours.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise unusable(root, error) from error


def unusable(root: Path, error: OSError) -> DirectoryUnusableError:
    """The error of a directory `root` in which something was refused; says what to do."""
    where = "" if error.filename in {None, str(root)} else f" at {error.filename}"
    msg = (
        f"the checkpoint directory {root} cannot be used ({error.strerror or error}{where}):"
        f" {advice(root, error)}, or set BT_CHECKPOINT_DIR to another directory"
    )
    return refused(msg, error)


def refused(text: str, error: OSError) -> DirectoryUnusableError:
    """The error of ours, with this text, for what the disk refused."""
    kind = DirectoryFullError if is_full(error) else DirectoryUnusableError
    failed = kind(text)
    failed.errno = error.errno
    return failed


def advice(root: Path, error: OSError) -> str:
    """What to do about `error`, which the disk of `root` answered with: one clause."""
    if error.errno == errno.ENOSPC and not inodes_left(root):
        return (
            "the volume has no inodes for more files, whatever bytes are free, so delete files"
            " there, of any size"
        )
    return _HINTS.get(error.errno or 0, "check the volume")


def inodes_left(root: Path) -> bool:
    """Whether the volume takes the files and directories of one more checkpoint, so far as known.

    A commit that failed has given back those that it had.
    """
    try:
        volume = os.statvfs(root)
    except OSError:
        return True
    return not volume.f_files or volume.f_favail >= FEW_FILES


def may_pass(error: BaseException) -> bool:
    """Whether it is of the disk, which may work again by itself: it is no lack of rights."""
    of_disk = isinstance(error, DirectoryUnusableError) or not isinstance(error, CheckpointError)
    return isinstance(error, OSError) and of_disk and error.errno in _PASSING
