"""Other callbacks of a Trainer that run between a save and the next optimizer step.

A snapshot is copied beside training, and committed later. What a hook may change is copied before
it runs; a hook that looks for the folder of a save finds it committed.
"""

from __future__ import annotations

from typing import Any, Final

from transformers import TrainerCallback

_KNOWN: Final = ("transformers", "trl", "peft", "accelerate", "bt_lightning", "datasets")
"""Packages whose hooks change no weights there."""
_LOGGED: Final = ("_log_model", "_log_artifacts", "_log_checkpoints")
"""Attributes of the loggers of `transformers`: whether they upload each checkpoint."""


def may_change_weights(trainer: Any, hook: str) -> bool:
    """Whether a callback has a hook of this name that is no library's."""
    return any(
        _home(one, hook).partition(".")[0] not in _KNOWN for one in _overriding(trainer, hook)
    )


def reads_saves(trainer: Any) -> bool:
    """Whether a callback may look for the folder of a save as soon as it is made."""
    return any(_is_reader(one) for one in _overriding(trainer, "on_save"))


def _overriding(trainer: Any, hook: str) -> list[Any]:
    base = getattr(TrainerCallback, hook)
    callbacks = trainer.callback_handler.callbacks
    found = [one for one in callbacks if getattr(type(one), hook, base) is not base]
    return [one for one in found if not _home(one, hook).startswith("bt_lightning.")]


def _is_reader(callback: Any) -> bool:
    """A logger that does not upload checkpoints is none."""
    if not type(callback).__module__.startswith("transformers."):
        return True
    said = [getattr(callback, name) for name in _LOGGED if hasattr(callback, name)]
    return not said or any(bool(getattr(each, "is_enabled", each)) for each in said)


def _home(callback: Any, hook: str) -> str:
    """Name of the module that defines the hook."""
    for kind in type(callback).__mro__:
        if hook in vars(kind):
            return kind.__module__
    return type(callback).__module__
