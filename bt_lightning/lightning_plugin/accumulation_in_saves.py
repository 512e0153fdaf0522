"""Carries the number of batches a step, which callbacks set at an epoch's start.

Lightning calls no `on_train_epoch_start` for the rest of an epoch that a run resumes, so that a
`GradientAccumulationScheduler` would leave the Trainer with what its arguments say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer


class AccumulationInSaves:
    """`accumulate_grad_batches` of one fit, if it was changed since its start."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._saved: int | None = None

    def begin(self, trainer: Trainer) -> None:
        """Called when the fit starts: note what the Trainer's arguments say."""
        self._first = trainer.accumulate_grad_batches

    def collect(self, trainer: Trainer) -> int | None:
        """What a save of this moment needs; None if nothing was changed."""
        now = trainer.accumulate_grad_batches
        return None if self._first in (None, now) else now

    def load(self, saved: Mapping[str, Any]) -> None:
        """Called with what the checkpoint says; a save at an epoch's end needs nothing of it."""
        self._saved = None if saved["epoch_end"] else saved.get("accumulation")

    def restore(self, trainer: Trainer) -> None:
        """Called after every hook of the training's start, which may check or set it."""
        if self._saved is not None:
            trainer.accumulate_grad_batches = self._saved
        self._saved = None
