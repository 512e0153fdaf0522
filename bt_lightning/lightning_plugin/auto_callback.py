"""The callback that Lightning's entry point adds to a Trainer when a job sets `BT_LIGHTNING=1`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from typing_extensions import override

from bt_lightning.lightning_plugin.callback import BTLightning
from bt_lightning.lightning_plugin.model_checkpoint_paths import find_checkpoint_paths
from bt_lightning.lightning_plugin.strategy_check import bypass_reason
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)


class AutoBTLightning(BTLightning):
    """`BTLightning` with all defaults; it removes itself where it would be wrong.

    It does so if the script has its own `BTLightning`, or if the strategy bypasses the
    CheckpointIO.
    """

    automatic = True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every rank: set up as `BTLightning`, or remove this callback from the Trainer."""
        reason = ranks_of(trainer).from_zero(lambda: self._objection(trainer))
        if reason is None:
            super().setup(trainer, pl_module, stage)
            return
        trainer.callbacks = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        if reason:
            # the run may still read our checkpoints
            self._install(trainer, find_checkpoint_paths(trainer, self._options))
            log.warning("%s: its checkpoints stay Lightning's own", reason)

    @override
    def _nobody_saves(self, trainer: Trainer, adopted: Sequence[ModelCheckpoint]) -> None:
        """No callback saves a resumable state: save at an interval, so that a job can resume."""
        if self._options.interval is None:
            self._options = replace(self._options, interval="auto")

    def _objection(self, trainer: Trainer) -> str | None:
        """Why the callback removes itself, empty for no log message; None if it stays."""
        others = [c for c in trainer.callbacks if c.state_key == self.state_key]  # type: ignore[attr-defined]
        if len(others) > 1:
            return ""
        around = bypass_reason(trainer)
        if around is not None:
            return around
        return None
