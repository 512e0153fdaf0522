"""Private names of Lightning for the validation that follows a batch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat import validation_is_due

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def before_validations(trainer: Trainer, act: Callable[[], None]) -> None:
    """Run `act` before each validation of the fit, until `stop_acting_before_validations`.

    Source: `_TrainingEpochLoop.on_advance_end`.
    """
    stop_acting_before_validations(trainer)
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    original = loop.run

    def run() -> Any:
        if trainer.validating:  # not the sanity check
            act()
        return original()

    vars(loop)["run"] = run


def stop_acting_before_validations(trainer: Trainer) -> None:
    """Undo `before_validations`; idempotent."""
    vars(trainer.fit_loop.epoch_loop.val_loop).pop("run", None)


def validation_total(trainer: Trainer) -> dict[str, int]:
    """Lightning's count of the batches of this epoch's validations."""
    total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    return dict(total.state_dict())


def end_batch(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint that was taken in the hooks of a batch's end to one behind them."""
    batch = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        batch[part] = {**batch[part], "completed": batch[part]["processed"]}


def begin_with_validation(trainer: Trainer, total: dict[str, int]) -> None:
    """Let the resumed epoch begin with a validation, all of it, before its next batch.

    Lightning before 2.6 does so by itself. Source: `_TrainingEpochLoop.advance`,
    `_EvaluationLoop.restarted_mid_evaluation`.
    """
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    loop.batch_progress.total.load_state_dict(total)
    loop.batch_progress.current.reset()
    loop._restart_stage = "restarted_mid_evaluation"
