"""Giving the checkpoint directory and readable names to a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.checks import checkpoint_root
from bt_lightning.lightning_plugin.compat import is_last_batch
from bt_lightning.lightning_plugin.last_link import LinkOrSave
from bt_lightning.lightning_plugin.meeting import from_zero
from bt_lightning.lightning_plugin.namespace import model_checkpoint_classes
from bt_lightning.lightning_plugin.places import is_url
from bt_lightning.lightning_plugin.routing import RoutedCheckpointIO

if TYPE_CHECKING:
    import os

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning.lightning_plugin.options import Options

NAME = "checkpoint-{step}"
"""What Baseten and HF call a checkpoint; the same words in every tool."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the checkpoints of a Trainer go, by what rank 0 sees."""

    root: Path
    """The checkpoint directory, absolute."""
    prefix: str
    """Of its checkpoints in the store."""
    writers: tuple[int, ...]
    """Which of the Trainer's callbacks are `ModelCheckpoint`s that write there."""


def place(trainer: Trainer, options: Options) -> Placement:
    """Every rank, before Lightning asks for a directory: where rank 0 puts the checkpoints.

    Raises:
        InvalidSettingError: on every rank, what rank 0 was given cannot be used.
    """

    def see() -> Placement:
        root = checkpoint_root(options.dir, trainer)
        return Placement(root, options.source(root).prefix, writers(trainer, root))

    return from_zero(trainer, see)


def writers(trainer: Trainer, root: Path) -> tuple[int, ...]:
    """Which of the callbacks are `ModelCheckpoint`s that write to `root`, as this rank's disk says.

    Those without a `dirpath` will; those whose user chose a directory elsewhere are left alone.
    """
    return tuple(
        index
        for index, callback in enumerate(trainer.callbacks)  # type: ignore[attr-defined]
        if isinstance(callback, model_checkpoint_classes())
        and (callback.dirpath is None or _is_below(callback.dirpath, root))
    )


def _is_below(place: str | os.PathLike[str], root: Path) -> bool:
    return not is_url(str(place)) and Path(place).resolve().is_relative_to(root)


def adopt(trainer: Trainer, placement: Placement) -> None:
    """Point those who write there, and have no `dirpath`, at the directory; before their `setup`.

    In it a checkpoint is a directory, so names there lose the suffix `.ckpt`.
    """
    for index in placement.writers:
        callback = trainer.callbacks[index]  # type: ignore[attr-defined]
        if callback.dirpath is None:
            callback.dirpath = str(placement.root)
        callback.FILE_EXTENSION = ""
        if callback.filename is None:
            callback.filename = NAME
            callback.auto_insert_metric_name = False
        if "on_train_batch_end" not in vars(callback):
            _Deferral(callback)
            callback._link_checkpoint = LinkOrSave(callback)
        # it holds our dot folder at least, and a run that resumes expects to find its own files
        warnings.filterwarnings(
            "ignore",
            message=re.escape(f"Checkpoint directory {callback.dirpath} exists and is not empty"),
        )


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
        pending = bool(trainer.strategy.broadcast(pending))
        return type(self._callback).file_exists(self._callback, filepath, trainer) or pending

    def should_remove(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning never removes what it resumed from; a request is kept until a run may."""
        kind, own = type(self._callback), Path(self._callback.dirpath or "").resolve()
        resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path is not None else None
        place = Path(previous).resolve()
        if place == resumed and own in place.parents:  # never in the directory of another job
            return previous != current
        return kind._should_remove_checkpoint(self._callback, trainer, previous, current)
