"""The live states of optimizers, whose names are kept while weights and states are the same."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

from bt_lightning.snapshot.local_shards import optimizer_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

_DICT = frozenset({dict})


class LiveOptimizers:
    """`optimizer_state` of each optimizer at each save; used on the training thread of one rank."""

    def __init__(self) -> None:
        self._known: dict[int, _Names] = {}

    def of(self, weights: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As `optimizer_state`, with dicts and lists of the caller's own.

        A microsecond a tensor the first time, a tenth of that while names and objects are the same.

        Args:
            weights: what `module_state` made of the module (not of FSDP1).
            optimizer: a torch optimizer, not wrapped.

        Raises:
            UnsupportedStateError: as `optimizer_state`.
        """
        names = self._known.get(id(optimizer))
        if names is not None and names.is_same(weights, optimizer):
            return names.state(optimizer)
        self._known.pop(id(optimizer), None)
        found = optimizer_state(weights, optimizer)
        self._known[id(optimizer)] = _Names(weights, optimizer, found)
        return found

    def clear(self) -> None:
        """Release every tensor."""
        self._known.clear()


class _Names:
    """The names in one state; keeps the optimizer alive, so that no other one has its `id`."""

    def __init__(
        self, weights: dict[str, Any], optimizer: torch.optim.Optimizer, found: dict[str, Any]
    ) -> None:
        self._optimizer = optimizer
        self._weights = dict(weights)
        self._trained, self._sizes = _trained(optimizer)
        self._stated = list(optimizer.state)
        self._groups = [list(group["params"]) for group in found["param_groups"]]
        self._states = list(found["state"])

    def is_same(self, weights: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
        """Whether all that is named is the same objects, in the same order."""
        trained, sizes = _trained(optimizer)
        return (
            optimizer is self._optimizer
            and sizes == self._sizes
            and list(weights) == list(self._weights)
            and _are_same(weights.values(), self._weights.values())
            and _are_same(trained, self._trained)
            and len(optimizer.state) == len(self._stated) == len(self._states)
            and _are_same(optimizer.state, self._stated)
        )

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state as it is now."""
        entries: Iterable[Any] = optimizer.state.values()
        if _DICT.issuperset(map(type, entries)):
            entries = map(dict, entries)
        else:
            entries = [dict(each) if isinstance(each, dict) else each for each in entries]
        pairs = zip(optimizer.param_groups, self._groups, strict=True)
        return {
            "state": dict(zip(self._states, entries, strict=True)),
            "param_groups": [{**group, "params": list(names)} for group, names in pairs],
        }


def _trained(optimizer: torch.optim.Optimizer) -> tuple[list[Any], list[int]]:
    """What all groups have, and how many each."""
    groups = [group["params"] for group in optimizer.param_groups]
    return list(chain.from_iterable(groups)), list(map(len, groups))


def _are_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(map(is_, some, others))
