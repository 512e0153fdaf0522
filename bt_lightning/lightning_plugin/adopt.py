"""Giving the checkpoint directory and readable names to a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.lightning_plugin.checkpoint_io import is_url
from bt_lightning.lightning_plugin.namespace import model_checkpoint_classes

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

NAME = "checkpoint-{step}"
"""What Baseten and HF call a checkpoint; the same words in every tool."""


def adopt(trainer: Trainer, root: Path) -> None:
    """Point each `ModelCheckpoint` without a `dirpath` at `root`; all ranks, before its `setup`.

    Those whose user chose a directory elsewhere are left alone. Under `root` a checkpoint is a
    directory, so names there lose the suffix `.ckpt`.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, model_checkpoint_classes()):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(root)
        place = callback.dirpath
        if is_url(place) or not Path(place).resolve().is_relative_to(root):
            continue
        callback.FILE_EXTENSION = ""
        if callback.filename is None:
            callback.filename = NAME
            callback.auto_insert_metric_name = False
        # it holds our dot folder at least, and a run that resumes expects to find its own files
        warnings.filterwarnings(
            "ignore", message=re.escape(f"Checkpoint directory {place} exists and is not empty")
        )
