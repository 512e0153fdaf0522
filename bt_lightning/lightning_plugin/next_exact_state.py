"""When the next state comes that a run can resume from exactly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bt_lightning.lightning_plugin import compat
from bt_lightning.rank_protocol import VALIDATED, Position

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from bt_lightning.session.step_timings import StepTimings

EPOCH_END = VALIDATED + 1
"""Boundary number at the end of an epoch."""
_SOON_S = 1e-3


def next_exact_state(
    trainer: Trainer, timings: StepTimings, position: Position
) -> tuple[float | None, Position]:
    """Seconds until the next such state (0 for that of `position`, None if unknown), and where.

    Called on the rank that writes, at the boundary `position`.
    """
    batches, within = position
    if within == EPOCH_END:
        return 0.0, position
    last = compat.is_last_batch(trainer)
    if within == VALIDATED:
        return (timings.step_s, (batches, EPOCH_END)) if last else (0.0, position)
    if within > 0:
        total = sum(trainer.num_val_batches)
        rest = timings.rest_of_validation_s(time.monotonic(), total)
        # behind its last batch too, as its last hooks are to come
        return None if rest is None else max(rest, _SOON_S), (batches, within + 1)
    missing = compat.batches_to_step(trainer)
    if missing:
        return missing * timings.step_s, (batches + 1, 0)
    if compat.validation_is_due(trainer):
        return timings.validation_s, (batches, 1)
    return (timings.step_s, (batches, EPOCH_END)) if last else (0.0, position)
