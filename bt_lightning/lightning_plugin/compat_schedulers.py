"""Private names of Lightning for the schedulers of the learning rate.

Lightning steps most schedulers before the hooks that save. One that needs a metric
(`ReduceLROnPlateau`, or `reduce_on_plateau=True`) it steps behind them: by steps after the
validation, by epochs after `on_train_epoch_end`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat import validation_is_due

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import Trainer


def steps_behind_the_save(trainer: Trainer) -> Iterator[tuple[int, str]]:
    """(scheduler, interval) of the steps that Lightning makes from now until the next batch.

    Source: `_TrainingEpochLoop.on_advance_end`, `_FitLoop.on_advance_end`.
    """
    loop: Any = trainer.fit_loop
    batch, epoch = loop.epoch_loop.batch_progress.current, loop.epoch_progress.current
    if not trainer.lightning_module.automatic_optimization:
        return  # the user steps them
    if not 0 < batch.ready == batch.processed or epoch.started != epoch.ready:
        return  # inside a batch, or before the first one
    due = []
    if epoch.processed < epoch.ready and not loop.epoch_loop._should_accumulate():
        due.append(("step", loop.epoch_loop.batch_idx + 1))
    if epoch.completed < epoch.ready and loop.epoch_loop._num_ready_batches_reached():
        due.append(("epoch", trainer.current_epoch + 1))
    for interval, count in due:
        for number, config in enumerate(trainer.lr_scheduler_configs):
            stepped = config.reduce_on_plateau and config.interval == interval
            if stepped and count % config.frequency == 0:
                yield number, interval


def waits_for_metrics(trainer: Trainer) -> bool:
    """Whether a validation or the end of the epoch follows the last batch, with its metrics."""
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress
    if batch.current.completed == batch.current.processed:
        return False
    return bool(batch.is_last_batch) or validation_is_due(trainer)


def step_scheduler(trainer: Trainer, number: int, value: object) -> None:
    """Step one scheduler as Lightning does.

    Source: `_TrainingEpochLoop._update_learning_rates`.
    """
    progress = trainer.fit_loop.epoch_loop.scheduler_progress
    progress.increment_ready()
    scheduler = trainer.lr_scheduler_configs[number].scheduler
    trainer.lightning_module.lr_scheduler_step(scheduler, value)
    progress.increment_completed()


def leave_out_repeated_steps(trainer: Trainer) -> None:
    """Let Lightning step no scheduler before the first batch of a resumed epoch.

    It does, with the metrics of the validation that was saved behind, if the batch that was trained
    last ended with one. Source: `_TrainingEpochLoop.advance`, `restarted_on_last`.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    original, started = loop._update_learning_rates, loop.batch_progress.total.started

    def update_learning_rates(*args: Any, **kwargs: Any) -> None:
        if loop.batch_progress.total.started > started:
            vars(loop).pop("_update_learning_rates", None)
            original(*args, **kwargs)

    vars(loop)["_update_learning_rates"] = update_learning_rates


def step_at_the_end_of_the_resumed_epoch(trainer: Trainer) -> None:
    """Let Lightning step the schedulers at the end of an epoch that was resumed in its middle.

    It leaves out those with a metric, and before 2.6 steps the others twice, since it takes the end
    of the epoch for one that was saved. Source: `_FitLoop.on_advance_end`.
    """
    trainer.fit_loop._restarting = False
