"""The callback that joins a Trainer by itself, in a job whose script does not know of it."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.callback import BTLightning
from bt_lightning.lightning_plugin.model_checkpoint_paths import find_checkpoint_paths
from bt_lightning.lightning_plugin.strategy_check import goes_around
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)

_first: weakref.ref[Any] | None = None
"""The Trainer of this process that fits first."""


class ImpliedBTLightning(BTLightning):
    """`BTLightning` with all defaults, which gives way to whatever the script says.

    To one that the script gave the Trainer; to a strategy that writes around the CheckpointIO; and
    to an earlier Trainer: two fits of one script (folds, stages) in one directory would go on from
    each other's checkpoints, so the first that fits has it, in each start of the script alike.
    """

    implied = True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every rank: join, or leave the Trainer as it is."""
        reason = ranks_of(trainer).from_zero(lambda: self._objection(trainer, stage))
        if reason is None:
            super().setup(trainer, pl_module, stage)
            return
        trainer.callbacks = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        if reason:
            self._install(
                trainer, find_checkpoint_paths(trainer, self._options)
            )  # it may read ours
            log.warning("%s: its checkpoints stay Lightning's own", reason)

    @override
    def _nobody_saves(self, trainer: Trainer, adopted: Sequence[ModelCheckpoint]) -> None:
        """The script saves elsewhere, or weights alone: save by itself, or no job can go on."""
        if self._options.interval is None:
            self._options = replace(self._options, interval="auto")

    def _objection(self, trainer: Trainer, stage: str) -> str | None:
        """Why this Trainer is left alone; empty if nobody needs to know; None if it is not."""
        global _first  # noqa: PLW0603 - the process has one directory
        others = [c for c in trainer.callbacks if c.state_key == self.state_key]  # type: ignore[attr-defined]
        if len(others) > 1:
            return ""
        around = goes_around(trainer)
        if around is not None:
            return around
        if stage != "fit" or compat.is_trial(trainer):
            return None
        if _first is None:
            _first = weakref.ref(trainer)
        if _first() is not trainer:
            return "another Trainer of this script has the checkpoint directory of the job"
        return None
