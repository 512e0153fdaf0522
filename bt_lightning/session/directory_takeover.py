"""Takes over a checkpoint directory when a run starts: checks, waits for commits, cleans up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bt_lightning.errors import DirectoryFullError, DirectoryUnusableError
from bt_lightning.localdir.atomic_directory import sweep
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.end_gathers import end_gathers
from bt_lightning.worker.commit_lock import wait_for_commits

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


def take_over(root: Path, limit_s: float, *, stored: bool, gathers: bool = True) -> None:
    """Prepare `root` for this run; wait up to `limit_s` seconds for commits of an earlier worker.

    A full directory is accepted if there is a store (`stored`), since saves may go there. With
    `gathers`, those of the earlier run are ended, as its parts met in this directory. Called in the
    training process of the rank that writes.

    Raises:
        DirectoryUnusableError: it is not writable, or another run still uses it.
        DirectoryFullError: it is full, and there is no store.
    """
    full = False
    try:
        check_root(root)
    except DirectoryFullError:  # an earlier run may be deleting files
        full = True
    with directory_errors(root):
        free = wait_for_commits(root, limit_s)
    if not free:
        msg = (
            f"another run still commits to {root} after {limit_s:.0f} s: end it,"
            " or give this one another BT_CHECKPOINT_DIR"
        )
        raise DirectoryUnusableError(msg)
    with directory_errors(root):
        for path in sweep(root):
            log.warning("put back %s, which a killed process was about to replace", path)
        if gathers:
            end_gathers(root, limit_s)
    if full:
        _full_root(root, stored=stored)


def _full_root(root: Path, *, stored: bool) -> None:
    """Check a full directory again; with a store, saves free space or go to the store.

    Raises:
        DirectoryFullError: it is still full, and there is no store.
    """
    try:
        check_root(root)
    except DirectoryFullError as error:
        if not stored:
            raise
        log.warning("saving to the store only: %s", error)
