"""Giving the checkpoint directory and readable names to a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.deferred_saves import DeferredSaves
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
from bt_lightning.lightning_plugin.save_last_link import LinkOrSave
from bt_lightning.lightning_plugin.trainer_checks import checkpoint_root
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.checkpoint_paths import is_url

if TYPE_CHECKING:
    import os

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning.session.options import Options

NAME = "checkpoint-{step}"
"""What Baseten and HF call a checkpoint; the same words in every tool."""


@dataclass(frozen=True, slots=True)
class CheckpointPaths:
    """Where the checkpoints of a Trainer go, by what rank 0 sees."""

    root: Path
    """The checkpoint directory, absolute."""
    prefix: str
    """Of its checkpoints in the store."""
    writers: tuple[int, ...]
    """Which of the Trainer's callbacks are `ModelCheckpoint`s that write there."""


def find_checkpoint_paths(trainer: Trainer, options: Options) -> CheckpointPaths:
    """Every rank, before Lightning asks for a directory: where rank 0 puts the checkpoints.

    Raises:
        InvalidSettingError: on every rank, what rank 0 was given cannot be used.
    """

    def see() -> CheckpointPaths:
        root = checkpoint_root(options.dir, trainer)
        return CheckpointPaths(root, options.source(root).prefix, writers(trainer, root))

    return ranks_of(trainer).from_zero(see)


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


def set_checkpoint_paths(trainer: Trainer, placement: CheckpointPaths) -> list[ModelCheckpoint]:
    """Point those who write there, and have no `dirpath`, at the directory; before their `setup`.

    In it a checkpoint is a directory, so names there lose the suffix `.ckpt`. Returns them.
    """
    found = [trainer.callbacks[index] for index in placement.writers]  # type: ignore[attr-defined]
    for callback in found:
        if callback.dirpath is None:
            callback.dirpath = str(placement.root)
        callback.FILE_EXTENSION = ""
        if callback.filename is None:
            callback.filename = NAME
            callback.auto_insert_metric_name = False
        if "on_train_batch_end" not in vars(callback):
            DeferredSaves(callback)
            _Names(callback)
            callback._link_checkpoint = LinkOrSave(callback)
        # it holds our dot folder at least, and a run that resumes expects to find its own files
        warnings.filterwarnings(
            "ignore",
            message=re.escape(f"Checkpoint directory {callback.dirpath} exists and is not empty"),
        )
    return found


class _Names:
    """What a `ModelCheckpoint` asks of, and does to, names that are committed later."""

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # no bound methods of it: a spawned rank unpickles this
        callback._should_remove_checkpoint = self.should_remove  # type: ignore[method-assign]
        callback.file_exists = self.file_exists  # type: ignore[method-assign]

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
