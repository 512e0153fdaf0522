"""Carries that `EarlyStopping` ended the run, so that a restart does not train an epoch more.

`trainer.should_stop` is in no checkpoint. What else sets it decides anew: a `Timer` by its state,
and a user's own code, which may have wanted a break.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat_resume import after_training_restored, skips_training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)


class StoppedEarly:
    """Whether the run was to end, of one fit."""

    def __init__(self) -> None:
        self._saved = False

    def collect(self, trainer: Trainer) -> bool:
        """What a save of this moment needs."""
        found: list[Any] = trainer.early_stopping_callbacks
        first = trainer.current_epoch == 0  # an epoch that is 0 says nothing
        return bool(trainer.should_stop) and any(
            first or each.stopped_epoch > 0 or each.wait_count >= each.patience for each in found
        )

    def load(self, trainer: Trainer, saved: Mapping[str, Any]) -> None:
        """Called with what the checkpoint says: end the run as soon as Lightning may look."""
        if not saved.get("stopped", False) or not trainer.early_stopping_callbacks:
            return
        self._saved = not saved["epoch_end"]
        if saved["epoch_end"]:
            after_training_restored(trainer, lambda: _stop(trainer))

    def restore(self, trainer: Trainer) -> None:
        """Called before an epoch goes on: end it, with the hooks of its end."""
        if self._saved:
            self._saved = False
            loop: Any = trainer.fit_loop.epoch_loop
            original = loop.on_run_start

            def on_run_start(*args: Any, **kwargs: Any) -> None:
                vars(loop).pop("on_run_start", None)
                original(*args, **kwargs)
                trainer.should_stop = True

            vars(loop)["on_run_start"] = on_run_start


def _stop(trainer: Trainer) -> None:
    trainer.should_stop = True
    progress: Any = trainer.fit_loop.epoch_progress
    parts: list[Any] = [progress.current, progress.total]
    for part in parts:
        part.completed = part.processed  # no hook counts it, as nothing is trained
    if trainer.is_global_zero and not skips_training(trainer):  # else that is said already
        log.warning(
            "nothing is left to train: EarlyStopping had ended this run at step %d. To train on,"
            " leave it out, or start afresh with resume='never'",
            trainer.global_step,
        )
