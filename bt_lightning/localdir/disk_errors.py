"""Errors of the disk: what they mean, whether they may pass, and what the user can do."""

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
"""Errors that may pass without a change of rights: the volume may recover, or be mounted again."""


@contextlib.contextmanager
def directory_errors(root: Path) -> Iterator[None]:
    """Translate an `OSError` in the block to an error that names `root` and says what to do.

    Raises:
        DirectoryUnusableError: there was an `OSError` that is no `CheckpointError`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise unusable(root, error) from error


def unusable(root: Path, error: OSError) -> DirectoryUnusableError:
    """The error for a checkpoint directory `root` that the system refuses; it says what to do."""
    where = "" if error.filename in {None, str(root)} else f" at {error.filename}"
    msg = (
        f"the checkpoint directory {root} cannot be used ({error.strerror or error}{where}):"
        f" {advice(root, error)}, or set BT_CHECKPOINT_DIR to another directory"
    )
    return refused(msg, error)


def refused(text: str, error: OSError) -> DirectoryUnusableError:
    """A `DirectoryUnusableError`, or `DirectoryFullError`, with this text and `error`'s errno."""
    kind = DirectoryFullError if is_full(error) else DirectoryUnusableError
    translated = kind(text)
    translated.errno = error.errno
    return translated


def advice(root: Path, error: OSError) -> str:
    """What the user can do about `error` of the disk of `root`: one clause for a message."""
    if error.errno == errno.ENOSPC and not inodes_left(root):
        return (
            "the volume has no inodes for more files, whatever bytes are free, so delete files"
            " there, of any size"
        )
    return _HINTS.get(error.errno or 0, "check the volume")


def inodes_left(root: Path) -> bool:
    """Whether the volume has inodes for one more checkpoint; True if it does not say.

    A failed commit has freed its own inodes before this is called.
    """
    try:
        volume = os.statvfs(root)
    except OSError:
        return True
    return not volume.f_files or volume.f_favail >= FEW_FILES


def may_pass(error: BaseException) -> bool:
    """Whether `error` is an error of the disk that may pass by itself."""
    of_disk = isinstance(error, DirectoryUnusableError) or not isinstance(error, CheckpointError)
    return isinstance(error, OSError) and of_disk and error.errno in _PASSING
