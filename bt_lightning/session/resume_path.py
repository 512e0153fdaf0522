"""The path of the checkpoint to resume from: `trainer.fit(..., ckpt_path=resume_path())`."""

from __future__ import annotations

import os
from pathlib import Path

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.restore.find_checkpoint import Search, find_loaded, find_own
from bt_lightning.settings import Settings


def resume_path() -> str | None:
    """The newest verified checkpoint on disk, in `$BT_CHECKPOINT_DIR` or `$BT_LOAD_CHECKPOINT_DIR`.

    Reads every byte of it on the calling rank. None if there is none. Does not look in the store;
    `BTLightning` does.

    Raises:
        CheckpointCorruptError: the job has checkpoints, but none of them can be used.
    """
    settings = Settings.from_environ(os.environ)
    found = Search()
    if settings.checkpoint_dir:
        own = list_committed(Path(settings.checkpoint_dir).resolve())
        find_own(own, [], _no_store, found)
    if found.path is None and not found.damaged and settings.load_dir:
        load_dir = Path(settings.load_dir).resolve()
        find_loaded(load_dir, settings.node_rank, found, weights_only=None)
    found.check()
    return found.path


def _no_store(_: object) -> str:
    msg = "the store was not searched"
    raise CheckpointNotFoundError(msg)
