"""Giving the checkpoint directory and readable names to a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat import is_last_batch
from bt_lightning.lightning_plugin.namespace import model_checkpoint_classes
from bt_lightning.lightning_plugin.places import is_url
from bt_lightning.lightning_plugin.routing import RoutedCheckpointIO

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

NAME = "checkpoint-{step}"
"""What Baseten and HF call a checkpoint; the same words in every tool."""


def adopt(trainer: Trainer, root: Path) -> int:
    """Point each `ModelCheckpoint` without a `dirpath` at `root`; all ranks, before its `setup`.

    Those whose user chose a directory elsewhere are left alone. Under `root` a checkpoint is a
    directory, so names there lose the suffix `.ckpt`. Returns how many write there.
    """
    adopted = 0
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, model_checkpoint_classes()):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(root)
        place = callback.dirpath
        if is_url(place) or not Path(place).resolve().is_relative_to(root):
            continue
        adopted += 1
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
    return adopted


class _Deferral:
    """Moves a save that falls on the last batch of an epoch to the end of that epoch.

    A checkpoint of the moment between the last batch and the epoch's end cannot be resumed exactly:
    Lightning skips the epoch's validation and its end, and miscounts epochs from then on, so that
    a run which is resumed twice trains too many (2.6) or repeats a batch (2.4). One of the epoch's
    end is exact. It also lets go, one run later, of what this run resumed from.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # no bound methods of it: a spawned rank unpickles this
        self._deferred: tuple[Any, int] | None = None
        method = type(callback).on_train_batch_end
        self._stock = any(method is k.on_train_batch_end for k in model_checkpoint_classes())
        callback.on_train_batch_end = self.on_train_batch_end  # type: ignore[method-assign]
        callback.on_train_epoch_end = self.on_train_epoch_end  # type: ignore[method-assign]
        callback._should_remove_checkpoint = self.should_remove  # type: ignore[method-assign]
        callback.file_exists = self.file_exists  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save now, or at the end of the epoch if this was its last batch."""
        self._deferred = None
        kind = type(self._callback)
        if self._stock and is_last_batch(trainer):
            self._deferred = (pl_module, batch_idx)  # not the batch: it would stay in memory
        else:
            kind.on_train_batch_end(self._callback, trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Make the save that was put off, then whatever is due now."""
        kind = type(self._callback)
        if self._deferred is not None:
            (module, batch_idx), self._deferred = self._deferred, None
            kind.on_train_batch_end(self._callback, trainer, module, None, None, batch_idx)
        kind.on_train_epoch_end(self._callback, trainer, pl_module)

    def file_exists(self, filepath: Any, trainer: Trainer) -> bool:
        """Whether a name is taken, if only by a save that is not committed yet; on every rank."""
        io = trainer.strategy.checkpoint_io
        pending = isinstance(io, RoutedCheckpointIO) and io.pending(filepath)
        found = type(self._callback).file_exists(self._callback, filepath, trainer)
        return found or bool(trainer.strategy.broadcast(pending))

    def should_remove(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning never removes what it resumed from; a request is kept until a run may."""
        kind, own = type(self._callback), Path(self._callback.dirpath or "").resolve()
        resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path is not None else None
        place = Path(previous).resolve()
        if place == resumed and own in place.parents:  # never in the directory of another job
            return previous != current
        return kind._should_remove_checkpoint(self._callback, trainer, previous, current)
