"""Detects strategies that bypass the CheckpointIO, whose checkpoints would not be committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.lightning_plugin.deepspeed_checks import deepspeed_reason
from bt_lightning.lightning_plugin.deepspeed_strategy import is_deepspeed
from bt_lightning.lightning_plugin.sharded_strategy import has_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from lightning.pytorch import Trainer

    from bt_lightning.session.options import Options

_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")
_HOOKS = ("save_checkpoint", "load_checkpoint")


def bypass_reason(trainer: Trainer) -> str | None:
    """Why the strategy's checkpoints bypass the CheckpointIO; None if they do not.

    A subclass that overrides a hook may still call `super()` or `checkpoint_io`, perhaps in another
    method; a class whose code names neither cannot.
    """
    kind = type(trainer.strategy)
    if has_parts(trainer):
        return None  # its saves and loads are taken over
    user_classes = [base for base in kind.__mro__ if not base.__module__.startswith(_LIGHTNING)]
    for hook in _HOOKS:
        if any(hook in vars(base) for base in user_classes) and not _delegates(user_classes, hook):
            return (
                f"{kind.__name__}.{hook} calls neither super().{hook} nor self.checkpoint_io, so"
                " none of its checkpoints would be durable, published or resumed"
            )
    return None


def refuse_strategy(trainer: Trainer, options: Options) -> None:
    """Raise `InvalidSettingError` for a strategy that bypasses the CheckpointIO."""
    if has_parts(trainer) and options.save_frozen is False:
        msg = (
            f"save_frozen=False leaves weights out, which {type(trainer.strategy).__name__} does"
            " not support: take save_frozen=False away"
        )
        raise InvalidSettingError(msg)
    if is_deepspeed(trainer):
        unsaved = deepspeed_reason(trainer.strategy)
        if unsaved is not None:
            msg = f"{type(trainer.strategy).__name__}: {unsaved}"
            raise InvalidSettingError(msg)
    reason = bypass_reason(trainer)
    if reason is not None:
        msg = (
            f"{reason}: use strategy 'ddp', or hand its checkpoints on to the CheckpointIO, or take"
            " BTLightning out of the callbacks"
        )
        raise InvalidSettingError(msg)


def _delegates(kinds: list[type[Any]], hook: str) -> bool:
    """Whether a method of these classes may call Lightning's `hook` or the CheckpointIO."""
    for kind in kinds:
        bases = {"super", "__class__", *(base.__name__ for base in kind.__mro__[1:])}
        for value in vars(kind).values():
            for code in _codes(getattr(value, "__func__", value)):
                names = {*code.co_names, *code.co_freevars}
                if "checkpoint_io" in names or (hook in names and bases & names):
                    return True
    return False


def _codes(function: object) -> Iterator[CodeType]:
    """The code objects of a function, of the functions it wraps, and of nested functions."""
    while function is not None:
        code = getattr(function, "__code__", None)
        rest = [code] if code is not None else []
        while rest:
            one = rest.pop()
            yield one
            rest += [const for const in one.co_consts if hasattr(const, "co_names")]
        function = getattr(function, "__wrapped__", None)
