"""The callback that joins each Trainer below `bt-lightning run`, without a change of the script."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.hf.callback import BTTrainerCallback
from bt_lightning.hf.trainer_checks import objection

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_NEEDED: Final = (
    *("_get_output_dir", "_load_best_model", "_maybe_log_save_evaluate", "_save_checkpoint"),
    "set_initial_training_values",
)
"""Methods of the Trainer that are replaced while it trains."""


class AutoBTTrainerCallback(BTTrainerCallback):
    """`BTTrainerCallback` with all defaults; it does nothing where it would be wrong."""

    automatic = True

    def run(self, trainer: Any, train: Callable[[str | None], Any], asked: Any) -> Any:
        """Every rank: as of `BTTrainerCallback`, or the Trainer's own code alone."""
        reason = objection(trainer)
        if reason is not None:
            log.warning("%s: its checkpoints stay the Trainer's own", reason)
            return train(asked)
        args = trainer.args
        nobody_saves = args.save_only_model or getattr(args.save_strategy, "value", "") == "no"
        if nobody_saves and self._options.interval is None:
            self._options = replace(self._options, interval="auto")
        return super().run(trainer, train, asked)


def join_trainers() -> None:
    """Add the callback to every Trainer that is made from here on, if a job sets `BT_LIGHTNING=1`.

    Called when `transformers.trainer` has been imported.
    """
    if os.environ.get("BT_LIGHTNING") != "1":
        return
    module = importlib.import_module("transformers.trainer")
    missing = [name for name in _NEEDED if not hasattr(module.Trainer, name)]
    if missing or not hasattr(module, "DEFAULT_CALLBACKS"):
        log.warning(
            "this transformers is too old to join (4.57 is the oldest): it lacks %s", missing
        )
        return
    if AutoBTTrainerCallback not in module.DEFAULT_CALLBACKS:
        module.DEFAULT_CALLBACKS.append(AutoBTTrainerCallback)
