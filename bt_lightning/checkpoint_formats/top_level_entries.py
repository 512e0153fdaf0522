"""Step, epoch and optimizer of a state dictionary that was pickled, by its top-level entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.tensor_files.pickle_interpreter import PickledValue

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_STEPS: Final = ("global_step", "global_steps", "step", "steps", "iteration", "iter", "iter_num")
_LIGHTNING: Final = "pytorch-lightning_version"
_MOST: Final = 2**53
_ADAPTER_PARTS: Final = frozenset({"lora_A", "lora_B", "lora_down", "lora_up"})


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What the top-level entries of a state dictionary say."""

    is_dictionary: bool
    is_lightning: bool
    step: int
    epoch: int
    has_optimizer: bool
    is_adapter: bool
    """Whether each of its weights is one of LoRA."""


def is_adapter(names: Collection[str]) -> bool:
    """Whether weights of these names are those of LoRA, and no others."""
    return bool(names) and all(_ADAPTER_PARTS.intersection(name.split(".")) for name in names)


def facts_of_state(value: Any) -> StateFacts:
    """The facts of a pickled dictionary; of anything else, none."""
    entries = dict(_text_entries(value))
    numbers = {k: v for k, v in entries.items() if type(v) is int and 0 <= v < _MOST}
    return StateFacts(
        is_dictionary=isinstance(value, PickledValue) and value.pairs is not None,
        is_lightning=_LIGHTNING in entries,
        step=next((numbers[name] for name in _STEPS if name in numbers), 0),
        epoch=numbers.get("epoch", 0),
        has_optimizer=any(
            "optim" in key and not (isinstance(inner, list) and not inner)
            for key, inner in entries.items()
        ),
        is_adapter=is_adapter(dict(_text_entries(entries.get("state_dict", value)))),
    )


def field_of(value: Any, name: str, missing: Any = None) -> Any:
    """An attribute of an object in a pickle: of its state, or an entry of a dictionary."""
    state = value.state if isinstance(value, PickledValue) else None
    for one in state if isinstance(state, tuple) else (state, value):
        pairs = one.pairs if isinstance(one, PickledValue) and one.pairs else []
        for key, inner in zip(pairs[0::2], pairs[1::2], strict=False):
            if isinstance(key, str) and key == name:
                return inner
    return missing


def _text_entries(value: Any) -> Iterator[tuple[str, Any]]:
    flat = value.pairs if isinstance(value, PickledValue) and value.pairs else []
    for key, inner in zip(flat[0::2], flat[1::2], strict=False):
        if isinstance(key, str):
            yield key, inner
