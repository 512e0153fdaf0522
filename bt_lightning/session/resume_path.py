"""For those who want to see the path: `trainer.fit(..., ckpt_path=bt_lightning.resume_path())`."""

from __future__ import annotations

import os
from pathlib import Path

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.restore.find_checkpoint import Search, find_loaded, find_own
from bt_lightning.settings import Settings


def resume_path() -> str | None:
    """The newest verified checkpoint on disk: `$BT_CHECKPOINT_DIR`, else `$BT_LOAD_CHECKPOINT_DIR`.

    Reads every byte of it, on the rank that calls. None if there is none. The store is not asked;
    `BTLightning` does that by itself.

    Raises:
        CheckpointCorruptError: the job has checkpoints, and none of them can be used.
    """
    settings = Settings.from_environ(os.environ)
    found = Search()
    if settings.checkpoint_dir:
        find_own(Path(settings.checkpoint_dir).resolve(), [], _no_store, found)
    if found.path is None and not found.damaged and settings.load_dir:
        load_dir = Path(settings.load_dir).resolve()
        find_loaded(load_dir, settings.node_rank, found, weights_only=None)
    found.check()
    return found.path


def _no_store(_: object) -> str:
    msg = "the store was not asked"
    raise CheckpointNotFoundError(msg)
