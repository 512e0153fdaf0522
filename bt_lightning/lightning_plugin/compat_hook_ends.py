"""Private names of Lightning for the moment behind all hooks of a boundary.

Lightning calls a hook of every callback, then that of the module, and then a method of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

Boundary = Literal["batch", "validation_batch", "validation", "epoch"]
"""What has ended."""

_NAME = "bt_hook_ends"


def behind_hooks(trainer: Trainer, act: Callable[[Boundary], None]) -> None:
    """Run `act` behind each boundary of the fit, until `stop_acting_behind_hooks`; on every rank.

    That is when every callback and the module have had `on_train_batch_end`,
    `on_validation_batch_end`, `on_validation_model_train` or `on_train_epoch_end`, and nothing else
    has happened. Source: `_TrainingEpochLoop.advance`, `_EvaluationLoop._evaluation_step`,
    `_EvaluationLoop.on_run_end`, `_FitLoop.on_advance_end`.
    """
    stop_acting_behind_hooks(trainer)
    connector: Any = trainer._logger_connector
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    ends = _HookEnds(act)
    vars(connector)[_NAME] = ends
    batch_end, epoch_end = connector.on_batch_end, connector.on_epoch_end
    model_train = loop._on_evaluation_model_train

    def on_batch_end() -> None:
        if trainer.training:
            ends.passed("batch")
        elif trainer.validating:
            ends.passed("validation_batch")
        batch_end()

    def on_epoch_end() -> None:
        if trainer.training:
            ends.passed("epoch")
        epoch_end()

    def on_evaluation_model_train() -> None:
        model_train()
        if trainer.validating:
            ends.passed("validation")

    vars(connector).update(on_batch_end=on_batch_end, on_epoch_end=on_epoch_end)
    vars(loop)["_on_evaluation_model_train"] = on_evaluation_model_train


def stop_acting_behind_hooks(trainer: Trainer) -> None:
    """Undo `behind_hooks`; idempotent."""
    for name in (_NAME, "on_batch_end", "on_epoch_end"):
        vars(trainer._logger_connector).pop(name, None)
    vars(trainer.fit_loop.epoch_loop.val_loop).pop("_on_evaluation_model_train", None)


def acts_behind_hooks(trainer: Trainer) -> bool:
    """Whether something acts behind the hooks of this fit."""
    return _NAME in vars(trainer._logger_connector)


def is_behind_hooks(trainer: Trainer) -> bool:
    """Whether this is that moment."""
    found = vars(trainer._logger_connector).get(_NAME)
    return isinstance(found, _HookEnds) and found.acting


class _HookEnds:
    """Calls what acts behind the hooks."""

    def __init__(self, act: Callable[[Boundary], None]) -> None:
        self._act = act
        self.acting = False

    def passed(self, boundary: Boundary) -> None:
        """All hooks of `boundary` have run."""
        self.acting = True
        try:
            self._act(boundary)
        finally:
            self.acting = False
