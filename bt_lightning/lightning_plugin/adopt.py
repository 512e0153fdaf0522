"""Giving the checkpoint directory and readable names to a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.checkpoint_io import is_url
from bt_lightning.lightning_plugin.compat import is_last_batch
from bt_lightning.lightning_plugin.namespace import model_checkpoint_classes

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

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
        if "on_train_batch_end" not in vars(callback):
            _Deferral(callback)
        # it holds our dot folder at least, and a run that resumes expects to find its own files
        warnings.filterwarnings(
            "ignore", message=re.escape(f"Checkpoint directory {place} exists and is not empty")
        )


class _Deferral:
    """Moves a save that falls on the last batch of an epoch to the end of that epoch.

    A checkpoint of the moment between the last batch and the epoch's end cannot be resumed exactly:
    Lightning skips the epoch's validation and its end, and miscounts epochs from then on, so that
    a run which is resumed twice trains too many (2.6) or repeats a batch (2.4). One of the epoch's
    end is exact. It also lets go, one run later, of what this run resumed from.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._batch_end = callback.on_train_batch_end
        self._epoch_end = callback.on_train_epoch_end
        self._should_remove = callback._should_remove_checkpoint
        self._deferred: tuple[Any, ...] | None = None
        callback.on_train_batch_end = self.on_train_batch_end  # type: ignore[method-assign]
        callback.on_train_epoch_end = self.on_train_epoch_end  # type: ignore[method-assign]
        callback._should_remove_checkpoint = self.should_remove  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._deferred = None
        if is_last_batch(trainer):
            self._deferred = (args, kwargs)
        else:
            self._batch_end(trainer, *args, **kwargs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._deferred is not None:
            (args, kwargs), self._deferred = self._deferred, None
            self._batch_end(trainer, *args, **kwargs)
        self._epoch_end(trainer, pl_module)

    def should_remove(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning never removes what it resumed from; a request is kept until a run may."""
        if (
            trainer.ckpt_path is not None
            and Path(previous).resolve() == Path(trainer.ckpt_path).resolve()
        ):
            return previous != current
        return self._should_remove(trainer, previous, current)
