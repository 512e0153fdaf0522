"""Checks that a resumed training begins at the step and epoch of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import ResumeMismatchError
from bt_lightning.lightning_plugin.compat_resume import (
    after_callbacks_restored,
    after_train_start,
    epochs_of,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def check_progress(trainer: Trainer, path: str) -> None:
    """Called on every rank when `path` was read: compare its progress with that of the training.

    The training's is taken right before its first batch. A callback that restores a checkpoint of
    its own when the fit starts leaves the weights, and sets the counters, the optimizers and the
    schedulers back to the beginning.

    Raises:
        ResumeMismatchError: from `fit`, on every rank, if they differ.
    """

    def arrange(checkpoint: dict[str, Any]) -> None:
        if "loops" in checkpoint:
            step, epochs = int(checkpoint["global_step"]), epochs_of(checkpoint)
            after_train_start(trainer, lambda: _check(trainer, path, step, epochs))

    after_callbacks_restored(trainer, arrange)


def _check(trainer: Trainer, path: str, step: int, epochs: tuple[int, int]) -> None:
    wrong = []
    if trainer.global_step != step:
        wrong.append(f"at step {trainer.global_step}, and the checkpoint is of step {step}")
    if not epochs[0] <= trainer.current_epoch <= epochs[1]:
        wrong.append(
            f"in epoch {trainer.current_epoch}, and the checkpoint has {epochs[0]} epochs behind it"
        )
    if wrong:
        msg = (
            f"the training that resumes from {path} begins {'; '.join(wrong)}. Nothing was trained."
            " A callback or a hook has reset the loops after they were restored, as a search for a"
            " learning rate or a batch size at the start of a fit does: run it only where nothing"
            " is resumed"
        )
        raise ResumeMismatchError(msg)
