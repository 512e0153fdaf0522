"""Private names of Lightning for the validation that follows a batch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bt_lightning.lightning_plugin.compat import validation_is_due

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import Trainer


def validation_is_scheduled(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended; the same on every rank.

    False for a validation by time, since clocks of ranks differ, and for one that takes place only
    because training stops here, since a resumed run would not have it.
    """
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return False
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return validation_is_due(trainer)
    finally:
        trainer.should_stop = stops


def is_between_validation_batches(trainer: Trainer) -> bool:
    """Whether a validation has begun and is not over; False in its last hooks."""
    return trainer._logger_connector._first_loop_iter is not None


def validation_has_run(trainer: Trainer) -> bool:
    """Whether Lightning expects metrics of a validation to exist."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._has_run)


def modes_outside_validation(trainer: Trainer) -> dict[str, bool] | None:
    """The train modes that the modules get back after the validation that runs; None if none does.

    Source: `_EvaluationLoop._on_evaluation_model_eval`.
    """
    if not (trainer.validating or trainer.sanity_checking):
        return None
    return trainer.fit_loop.epoch_loop.val_loop._module_mode.mode or None


@contextmanager
def as_if_validation_had_run(trainer: Trainer, has_run: bool) -> Iterator[None]:  # noqa: FBT001
    """Make `validation_has_run` return `has_run` inside the context."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    now, loop._has_run = loop._has_run, has_run
    try:
        yield
    finally:
        loop._has_run = now
