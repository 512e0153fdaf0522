"""Strategies that write checkpoints around the CheckpointIO: nothing of ours would be committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from lightning.pytorch import Trainer

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")
_HOOKS = ("save_checkpoint", "load_checkpoint")


def goes_around(trainer: Trainer) -> str | None:
    """Why the strategy's checkpoints would not be ours; None if they are.

    What a subclass overrides may still call `super()` or `checkpoint_io`, maybe by another of its
    methods; one that names neither anywhere cannot.
    """
    kind = type(trainer.strategy)
    if not {base.__name__ for base in kind.__mro__}.isdisjoint(_SHARDED):
        return f"BTLightning does not write the checkpoints of {kind.__name__} yet"
    strange = [base for base in kind.__mro__ if not base.__module__.startswith(_LIGHTNING)]
    for hook in _HOOKS:
        if any(hook in vars(base) for base in strange) and not _hands_on(strange, hook):
            return (
                f"{kind.__name__}.{hook} calls neither super().{hook} nor self.checkpoint_io, so"
                " none of its checkpoints would be durable, published or resumed"
            )
    return None


def refuse_strategy(trainer: Trainer) -> None:
    """Raise `InvalidSettingError` for a strategy that writes around the CheckpointIO."""
    reason = goes_around(trainer)
    if reason is not None:
        msg = (
            f"{reason}: use strategy 'ddp', or hand its checkpoints on to the CheckpointIO, or take"
            " BTLightning out of the callbacks"
        )
        raise InvalidSettingError(msg)


def _hands_on(kinds: list[type[Any]], hook: str) -> bool:
    """Whether any method of these classes may come to Lightning's `hook`, or the CheckpointIO."""
    for kind in kinds:
        bases = {"super", "__class__", *(base.__name__ for base in kind.__mro__[1:])}
        for value in vars(kind).values():
            for code in _codes(getattr(value, "__func__", value)):
                names = {*code.co_names, *code.co_freevars}
                if "checkpoint_io" in names or (hook in names and bases & names):
                    return True
    return False


def _codes(function: object) -> Iterator[CodeType]:
    """The code of a function, of what it wraps, and of functions inside it."""
    while function is not None:
        code = getattr(function, "__code__", None)
        todo = [code] if code is not None else []
        while todo:
            one = todo.pop()
            yield one
            todo += [const for const in one.co_consts if hasattr(const, "co_names")]
        function = getattr(function, "__wrapped__", None)
