"""When the next state comes that a run can resume from exactly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.compat_dataloaders import batches_trained
from bt_lightning.rank_protocol import VALIDATED, Position

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from bt_lightning.rank_protocol import Request
    from bt_lightning.session.step_timings import StepTimings

EPOCH_END = VALIDATED + 1
"""Boundary number at the end of an epoch."""
_SOON_S = 1e-3
_PATIENCE_S = 60.0
"""A due interval save waits as long for the end of an epoch, or one interval if that is longer."""


def next_exact_state(
    trainer: Trainer, timings: StepTimings, position: Position, epoch_end_within_s: float
) -> tuple[float | None, Position]:
    """Seconds until the next such state (0 for that of `position`, None if unknown), and where.

    Called on the rank that writes, at the boundary `position`. Where states inside an epoch are
    inexact, the next one is the end of the epoch, if that comes within `epoch_end_within_s`
    (0 where they are exact), and else as if they were exact.
    """
    if _is_exact(trainer, position):
        rest_s = _rest_of_epoch_s(trainer, timings) if position[1] != EPOCH_END else 0.0
        if not 0 < rest_s <= epoch_end_within_s:
            return 0.0, position
        return rest_s, (position[0] + 1, 0)  # asked again there: steps may get slower
    later_s, until = _later(trainer, timings, position)
    # 0 s, of steps that are quick or not measured, would say that this state is one
    return None if later_s is None else max(later_s, _SOON_S), until


def patience_s(
    trainer: Trainer,
    timings: StepTimings,
    request: Request,
    left_s: float,
    interval_s: float | None,
) -> float:
    """How long a save may wait for the end of an epoch, if only that is exact.

    `left_s`: until the platform kills, after a signal; `interval_s`: between interval saves.
    """
    if request != "save":
        return 0.0 if timings.save_s is None else left_s / 2
    if trainer.world_size > 1:
        return 0.0  # every batch would be one that all ranks decide about
    return max(interval_s or 0.0, _PATIENCE_S)


def _is_exact(trainer: Trainer, position: Position) -> bool:
    within = position[1]
    if within in {VALIDATED, 0} and compat.is_last_batch(trainer):
        return False
    if within == 0:
        return not compat.batches_to_step(trainer) and not compat.validation_is_due(trainer)
    return within >= VALIDATED  # else behind a batch of a validation, whose last hooks are to come


def _rest_of_epoch_s(trainer: Trainer, timings: StepTimings) -> float:
    left = trainer.num_training_batches - batches_trained(trainer)
    return max(left * timings.step_s, _SOON_S)  # infinity where the dataloader has no length


def _later(
    trainer: Trainer, timings: StepTimings, position: Position
) -> tuple[float | None, Position]:
    batches, within = position
    if 0 < within < VALIDATED:
        total = sum(trainer.num_val_batches)
        rest = timings.rest_of_validation_s(time.monotonic(), total)
        return rest, (batches, within + 1)
    missing = compat.batches_to_step(trainer) if within == 0 else 0
    if missing:
        return missing * timings.step_s, (batches + 1, 0)
    if within == 0 and compat.validation_is_due(trainer):
        return timings.validation_s, (batches, 1)
    return timings.step_s, (batches, EPOCH_END)
