"""Lets the kernel read what a run will restore, while Python still imports torch.

It is a hint: the run chooses and verifies by itself, and takes what it needs from the page cache.
Source: posix_fadvise(2).
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.held_images import held_images
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.memory_available import memory_available
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.localdir.sidecars import content_directory

if TYPE_CHECKING:
    from pathlib import Path

_STEP_BYTES: Final = 128 * 1024
"""Of a longer range the kernel reads the beginning only."""


def begin_read_ahead(root: Path, *, shards: bool) -> threading.Thread:
    """As `read_ahead`, on a thread of its own, which keeps no process from ending."""
    thread = threading.Thread(
        target=read_ahead,
        args=(root,),
        kwargs={"shards": shards},
        name="bt_lightning read ahead",
        daemon=True,
    )
    thread.start()
    return thread


def read_ahead(root: Path, *, shards: bool) -> int:
    """Let the kernel read the newest checkpoint below `root` into its page cache.

    `shards`: also one of several ranks' parts, if all of them are read on this machine.

    Returns the bytes of its files; 0 if there is none, if that is more than half of the memory that
    is left, or if workers of a killed run hold an image in memory.
    """
    with contextlib.suppress(CheckpointError, OSError):
        if not root.is_dir() or held_images(root):
            return 0
        newest = next(iter(list_committed(root, foreign=False).found), None)
        room = memory_available()
        if newest is None or room is None or newest.manifest.size > room // 2:
            return 0
        if newest.manifest.has_parts and not shards:
            return 0
        for entry in newest.manifest.files:
            _read(content_directory(newest.path) / entry.path)
        return newest.manifest.size
    return 0


def _read(path: Path) -> None:
    descriptor = open_regular(path)
    try:
        for start in range(0, os.fstat(descriptor).st_size, _STEP_BYTES):
            os.posix_fadvise(descriptor, start, _STEP_BYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
