"""Sets the checkpoint directory and names of a Trainer's `ModelCheckpoint` callbacks."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.deferred_saves import DeferredSaves, is_to_be_saved
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
from bt_lightning.lightning_plugin.trainer_checks import checkpoint_root
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.checkpoint_paths import is_url

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning.session.options import Options

NAME = "checkpoint-{step}"
"""The name that Baseten and Hugging Face use for checkpoints."""


_DEFAULT_DIRPATH = "bt_default_dirpath"


@dataclass(frozen=True, slots=True)
class CheckpointPaths:
    """The directory of a Trainer's checkpoints, as determined on rank 0."""

    root: Path
    """The checkpoint directory, absolute."""
    prefix: str
    """Key prefix of its checkpoints in the store."""
    writers: tuple[int, ...]
    """Indices of the Trainer's callbacks that are `ModelCheckpoint`s and write to `root`."""


def find_checkpoint_paths(trainer: Trainer, options: Options) -> CheckpointPaths:
    """Called on every rank before Lightning sets up its callbacks: the directory, from rank 0.

    Raises:
        InvalidSettingError: on every rank, if the settings of rank 0 cannot be used.
    """

    def look_on_rank_0() -> CheckpointPaths:
        root = checkpoint_root(options.dir, trainer)
        return CheckpointPaths(root, options.source(root).prefix, writers(trainer, root))

    return ranks_of(trainer).from_zero(look_on_rank_0)


def writers(trainer: Trainer, root: Path) -> tuple[int, ...]:
    """Indices of the callbacks that are `ModelCheckpoint`s and write to `root`, on this rank.

    Those without a `dirpath` will write there; those with a `dirpath` elsewhere do not.
    """
    return tuple(
        index
        for index, callback in enumerate(trainer.callbacks)  # type: ignore[attr-defined]
        if isinstance(callback, model_checkpoint_classes())
        and (callback.dirpath is None or _is_below(callback.dirpath, root))
    )


def _is_below(folder: str | os.PathLike[str], root: Path) -> bool:
    return not is_url(str(folder)) and Path(folder).resolve().is_relative_to(root)


def set_checkpoint_paths(
    trainer: Trainer, paths: CheckpointPaths, folder: str = ""
) -> list[ModelCheckpoint]:
    """Set the directory of the `ModelCheckpoint`s without a `dirpath`, before their `setup`.

    It is the root, or the `folder` of the fit below it. Names in it have no suffix `.ckpt`, since
    a checkpoint is a directory. Returns the callbacks that write there.
    """
    found = [trainer.callbacks[index] for index in paths.writers]  # type: ignore[attr-defined]
    for callback in found:
        if callback.dirpath is None or is_default_dirpath(callback):
            callback.dirpath = str(paths.root / folder)
            vars(callback)[_DEFAULT_DIRPATH] = True
        callback.FILE_EXTENSION = ""
        if callback.filename is None:
            callback.filename = NAME
            callback.auto_insert_metric_name = False
        if "on_train_batch_end" not in vars(callback):
            DeferredSaves(callback)
            _PatchedNames(callback)
        # it has at least our dot folder, and a resumed run has its own checkpoints
        warnings.filterwarnings(
            "ignore",
            message=re.escape(f"Checkpoint directory {callback.dirpath} exists and is not empty"),
        )
    return found


def is_default_dirpath(callback: ModelCheckpoint) -> bool:
    """Whether the directory of a `ModelCheckpoint` is ours, not of the script's choice."""
    return _DEFAULT_DIRPATH in vars(callback)


@contextmanager
def _exists_too(callback: ModelCheckpoint, *, exists: bool) -> Iterator[None]:
    """Let the filesystem of a `ModelCheckpoint` say that every path exists, if `exists`.

    Lightning tells all ranks what rank 0's says: one word for both that and a save in progress.
    Source: `ModelCheckpoint.file_exists`.
    """
    filesystem = callback._fs
    if exists:
        vars(callback)["_fs"] = SimpleNamespace(exists=lambda *_, **__: True)
    try:
        yield
    finally:
        vars(callback)["_fs"] = filesystem


class _PatchedNames:
    """Patches the methods of a `ModelCheckpoint` that must consider saves in progress."""

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # no bound methods of it: a spawned rank unpickles this
        callback._should_remove_checkpoint = self.should_remove  # type: ignore[method-assign]
        callback.file_exists = self.file_exists  # type: ignore[method-assign]

    def file_exists(self, filepath: Any, trainer: Trainer) -> bool:
        """Whether a name exists, also as a save in progress; called on every rank."""
        if is_to_be_saved(trainer, str(filepath)):  # the same on every rank
            return True
        io, kind = trainer.strategy.checkpoint_io, type(self._callback)
        pending = isinstance(io, RoutedCheckpointIO) and io.pending(filepath)
        if any(kind.file_exists is each.file_exists for each in model_checkpoint_classes()):
            with _exists_too(self._callback, exists=pending):
                return kind.file_exists(self._callback, filepath, trainer)
        pending = bool(trainer.strategy.broadcast(pending))
        return kind.file_exists(self._callback, filepath, trainer) or pending

    def should_remove(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Allow the removal of what the run resumed from, which Lightning never removes.

        The request waits for the next run.
        """
        kind, own = type(self._callback), Path(self._callback.dirpath or "").resolve()
        resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path is not None else None
        folder = Path(previous).resolve()
        if folder == resumed and own in folder.parents:  # not in another job's directory
            return previous != current
        return kind._should_remove_checkpoint(self._callback, trainer, previous, current)
