"""The path of the checkpoint to resume from: `trainer.fit(..., ckpt_path=resume_path())`."""

from __future__ import annotations

import os
from pathlib import Path

from bt_lightning.checkpoint_formats.sharded_folders import DEEPSPEED
from bt_lightning.checkpoints_of_fit import of_fit, of_newest_fit
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, list_committed
from bt_lightning.restore.find_checkpoint import Search, find_loaded, find_own
from bt_lightning.settings import Settings


def resume_path(fit: str | None = None) -> str | None:
    """The newest verified checkpoint on disk, in `$BT_CHECKPOINT_DIR` or `$BT_LOAD_CHECKPOINT_DIR`.

    Reads every byte of it on the calling rank. None if there is none. Does not look in the store;
    `BTLightning` does.

    Args:
        fit: of a job with several fits, the one whose checkpoint it is, by its `fit_name` or its
            folder below the directory (`"fit-2"`; `""` for the first one without a name); by
            default `$BT_FIT_NAME`, else the one that saved last. The load directory has no fits.

    Raises:
        CheckpointCorruptError: the fit has checkpoints, but none of them can be used.
    """
    settings = Settings.from_environ(os.environ)
    found = Search()
    if settings.checkpoint_dir:
        root = Path(settings.checkpoint_dir).resolve()
        own = list_committed(root, foreign=False)
        lightnings = [one for one in own.found if one.manifest.format in {None, DEEPSPEED}]
        found_there = _of(lightnings, settings.fit_name if fit is None else fit)
        find_own(own._replace(found=found_there), [], _no_store, found)
    if found.path is None and not found.damaged and settings.load_dir:
        load_dir = Path(settings.load_dir).resolve()
        find_loaded(load_dir, settings.node_rank, found, weights_only=None)
    found.check()
    return found.path


def _of(found: list[LocalCheckpoint], fit: str | None) -> list[LocalCheckpoint]:
    if fit is None:
        return of_newest_fit(found, lambda one: one.manifest)
    return of_fit(found, lambda one: one.manifest, fit)


def _no_store(_: object) -> str:
    msg = "the store was not searched"
    raise CheckpointNotFoundError(msg)
