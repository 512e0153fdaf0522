"""Makes up, at a resume, for the scheduler steps that came right after the save.

Lightning steps a `ReduceLROnPlateau` after the hooks in which checkpoints are saved, and a resumed
run begins with the next batch or epoch. So a save records which steps were still to be made, and
with which metric.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat_schedulers
from bt_lightning.lightning_plugin.compat import iterates_at_train_start
from bt_lightning.lightning_plugin.compat_weight_averaging import go_on_averaging
from bt_lightning.lightning_plugin.trainer_checks import as_logged, scalars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)


class OwedSchedulerSteps:
    """The scheduler steps of one fit that a save comes before."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None
        """Steps to make before the first batch; None if that is done."""
        self._epoch_end = False

    def collect(self, trainer: Trainer) -> list[dict[str, Any]]:
        """What a save of this moment needs: the steps behind it, before the next batch."""
        return _owed_steps(trainer) if self._loaded is None else self._loaded

    def load(self, saved: Mapping[str, Any]) -> None:
        """Called with what the checkpoint says."""
        self._loaded = list(saved.get("owed_steps", ()))
        self._epoch_end = bool(saved["epoch_end"])

    def make(self, trainer: Trainer) -> None:
        """Called on every rank right before the first batch of a run: make the loaded steps."""
        owed, self._loaded = self._loaded, None
        if owed is None:
            return
        if not self._epoch_end:
            compat_schedulers.step_at_the_end_of_the_resumed_epoch(trainer)
            go_on_averaging(trainer)
        validates_again = iterates_at_train_start(trainer) and not self._epoch_end
        for step in owed:
            if step["early"] and validates_again:
                continue  # Lightning makes it, behind the validation that it repeats
            _make(trainer, step)
            if not self._epoch_end:
                compat_schedulers.leave_out_repeated_steps(trainer)


def _owed_steps(trainer: Trainer) -> list[dict[str, Any]]:
    steps = list(compat_schedulers.steps_behind_the_save(trainer))
    metrics = scalars(trainer.callback_metrics) if steps else {}
    early = bool(steps) and compat_schedulers.waits_for_metrics(trainer)
    owed = []
    for number, interval in steps:
        monitor = str(trainer.lr_scheduler_configs[number].monitor)
        value = metrics.get(monitor)
        step = {"scheduler": number, "interval": interval, "monitor": monitor}
        owed.append({**step, "value": value, "early": early})
    return owed


def _make(trainer: Trainer, step: dict[str, Any]) -> None:
    number, value = int(step["scheduler"]), step["value"]
    configs = trainer.lr_scheduler_configs
    if number >= len(configs) or not configs[number].reduce_on_plateau:
        return  # other schedulers than those that were saved
    if trainer.is_global_zero and (value is None or step["early"]):
        log.warning(
            "the checkpoint was saved before the metric %r of %s was there: %s, and the learning"
            " rate may differ from that of an uninterrupted run",
            step["monitor"],
            type(configs[number].scheduler).__name__,
            "a step is left out" if value is None else "a step is made with the metric before",
        )
    if value is not None:
        device = trainer.strategy.root_device
        compat_schedulers.step_scheduler(trainer, number, as_logged(value).to(device))
