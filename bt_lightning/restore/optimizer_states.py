"""States of optimizers by names of parameters, and by numbers, as a plain optimizer has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_lightning.errors import CheckpointCorruptError

OPTIMIZERS = "optimizer_states"


def numbered(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the optimizers of a checkpoint, numbered in order of their groups.

    States that no group names parameters of, or that are numbered, stay as they are.

    Raises:
        CheckpointCorruptError: a state is of a parameter that no group has.
    """
    if OPTIMIZERS not in checkpoint:
        return {}
    return {OPTIMIZERS: [_numbered(each) for each in checkpoint[OPTIMIZERS]]}


def _numbered(state: Any) -> Any:
    if not is_optimizer_state(state):
        return state
    names = parameters(state)
    if not all(isinstance(name, str) for name in names):
        return state
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [name for name in state["state"] if name not in numbers]
    if unknown:
        msg = f"the checkpoint has a state of {unknown[0]!r}, a parameter of no optimizer's group"
        raise CheckpointCorruptError(msg)
    return {
        **state,
        "state": {numbers[name]: each for name, each in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def with_keys_of_groups(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state of an optimizer, whose numbers DCP made texts, with keys as its groups have them.

    What has another form stays as it is.
    """
    if not is_optimizer_state(state):
        return state
    keys = {str(key): key for key in parameters(state) if type(key) is int}
    return {**state, "state": {keys.get(key, key): each for key, each in state["state"].items()}}


def is_optimizer_state(state: Any) -> bool:
    """Whether it has the form of a `torch.optim.Optimizer`'s state."""
    return (
        isinstance(state, Mapping)
        and isinstance(state.get("state"), Mapping)
        and isinstance(state.get("param_groups"), list)
        and all(
            isinstance(group, Mapping) and isinstance(group.get("params"), list)
            for group in state["param_groups"]
        )
    )


def parameters(state: Mapping[str, Any]) -> list[Any]:
    """Names or numbers of an optimizer's parameters, in order of the groups."""
    return [each for group in state["param_groups"] for each in group["params"]]
