"""Whether a directory can take checkpoints, asked before the first one costs anything."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from bt_lightning.errors import DirectoryFullError, DirectoryUnusableError
from bt_lightning.localdir.durable import empty_trash, sweep_temporaries, temporary
from bt_lightning.localdir.room import is_full

if TYPE_CHECKING:
    from pathlib import Path

_HINTS = {
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EROFS: "the volume is mounted read-only, so mount it for writing",
    errno.ENOTDIR: "a file stands where a directory should be, so move it away",
    errno.EEXIST: "a file stands where a directory should be, so move it away",
    errno.ENOSPC: "the volume is full, so free some space",
}


def _check_access(root: Path) -> None:
    if not os.access(root, os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(root).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(root))


def _probe(root: Path) -> None:
    with temporary(root) as path:
        (path / "probe").write_bytes(b"bt_lightning")
        (path / "probe").rename(path / "renamed")


def usable_root(root: Path) -> Path:
    """Create `root` if needed and prove that directories can be built and files renamed in it.

    Raises:
        DirectoryFullError: it is full.
        DirectoryUnusableError: it cannot for another reason. Both say what to do.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_access(root)
        try:
            _probe(root)
        except OSError as error:
            if not is_full(error):
                raise
            sweep_temporaries(root)  # of a process that was killed when it had filled the disk
            empty_trash(root)
            _probe(root)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check the volume")
        msg = (
            f"the checkpoint directory {root} cannot be used ({error.strerror or error}): {hint},"
            " or set BT_CHECKPOINT_DIR to another directory"
        )
        kind = DirectoryFullError if is_full(error) else DirectoryUnusableError
        raise kind(msg) from error
    return root
