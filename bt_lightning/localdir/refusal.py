"""What is said when a checkpoint directory cannot be used: why, and what to do."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError, DirectoryFullError, DirectoryUnusableError
from bt_lightning.localdir.room import is_full

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
}


@contextlib.contextmanager
def named(root: Path) -> Iterator[None]:
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
    hint = _HINTS.get(error.errno or 0, "check the volume")
    where = "" if error.filename in {None, str(root)} else f" at {error.filename}"
    msg = (
        f"the checkpoint directory {root} cannot be used ({error.strerror or error}{where}):"
        f" {hint}, or set BT_CHECKPOINT_DIR to another directory"
    )
    kind = DirectoryFullError if is_full(error) else DirectoryUnusableError
    failed = kind(msg)
    failed.errno = error.errno
    return failed
