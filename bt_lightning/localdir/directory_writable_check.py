"""Check at the start of a run that a checkpoint directory can be written."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from bt_lightning.localdir.atomic_directory import sweep_temporaries, sweep_trash, temporary
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.disk_space import is_full

if TYPE_CHECKING:
    from pathlib import Path


def _check_access(root: Path) -> None:
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(root).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(root))


def _probe(root: Path) -> None:
    with temporary(root) as path:
        (path / "probe").write_bytes(b"bt_lightning")
        (path / "probe").rename(path / "renamed")


def check_root(root: Path) -> Path:
    """Create `root` if needed, and test that files can be written and renamed in it.

    Deletes the temporary directories that killed processes left in it.

    Raises:
        DirectoryFullError: the disk is full.
        DirectoryUnusableError: the directory cannot be used; both errors say what to do.
    """
    with directory_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _check_access(root)
        sweep_temporaries(root)  # also of an earlier check; the disk may be full of them
        try:
            _probe(root)
        except OSError as error:
            if not is_full(error):
                raise
            sweep_trash(root)
            _probe(root)
    return root
