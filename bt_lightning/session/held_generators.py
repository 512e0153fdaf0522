"""Random generators that a script's own samplers and datasets hold, and what the samplers count.

They are found by a walk over attributes, which runs no code of the script, and known by the path of
attributes that leads to them. A restore sets what it finds under the same path, in place.
"""

from __future__ import annotations

import json
import random
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_OBJECTS = 300
"""Objects that a walk enters at most."""
_ITEMS = 16
"""Items of a list or dictionary that it looks at."""
_DEPTH = 5
_MOST_BYTES = 16 << 20
"""Of the arrays of a sampler; larger ones are left as they are."""
_THEIR_OWN = ("torch", "torchdata", "lightning", "pytorch_lightning", "lightning_fabric")
"""Packages whose objects hold generators that are looked after elsewhere, or need not be."""
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_ARRAYS = (np.ndarray, torch.Tensor)
_LEAVES = (*_GENERATORS, *_ARRAYS, int, float)


class HeldGenerators:
    """What the train dataloaders of one fit hold, on one rank."""

    def __init__(self) -> None:
        self._at_start: dict[str, float] | None = None
        """Numbers that samplers hold, as the script made them."""

    def begin(self, loaders: list[Any]) -> None:
        """Called when the dataloaders are made, before anything is restored or drawn."""
        if self._at_start is None:
            self._at_start = _numbers(_walk(loaders))

    def collect(self, loaders: list[Any]) -> dict[str, Any]:
        """What a checkpoint says: states by path, and numbers that changed, with what they were."""
        held = list(_walk(loaders))
        drawing = {id(owner) for _, owner, _, value in held if isinstance(value, _GENERATORS)}
        states: dict[str, Any] = {}
        for path, owner, _, value in held:
            if isinstance(value, _GENERATORS):
                states[path] = _state_of(value)
            elif isinstance(value, _ARRAYS) and id(owner) in drawing and _is_of_sampler(path):
                states[path] = torch.as_tensor(value).clone()
        at_start = self._at_start or {}
        now = _numbers(held)
        both = {path: [at_start[path], now[path]] for path in at_start.keys() & now.keys()}
        counted = {path: pair for path, pair in both.items() if pair[0] != pair[1]}
        return {"states": states, "counted": counted}

    def restore(self, loaders: list[Any], saved: Mapping[str, Any]) -> None:
        """Set what lies under the same paths and is of the same kind.

        A number is set only if the script begins with the one that it began with then.
        """
        states, counted = saved.get("states", {}), saved.get("counted", {})
        at_start = self._at_start or {}
        for path, owner, name, value in list(_walk(loaders)):
            state = states.get(path)
            if path in counted and at_start.get(path) == counted[path][0]:
                vars(owner)[name] = counted[path][1]
            elif state is None:
                continue
            elif isinstance(value, _GENERATORS):
                _set_state(value, state)
            elif isinstance(value, torch.Tensor) and value.shape == state.shape:
                value.copy_(state)
            elif isinstance(value, np.ndarray) and value.shape == tuple(state.shape):
                np.copyto(value, state.cpu().numpy(), casting="unsafe")


def _numbers(held: Iterable[tuple[str, object, str, Any]]) -> dict[str, float]:
    return {
        path: value
        for path, _, _, value in held
        if type(value) in {int, float} and _is_of_sampler(path)
    }


def _walk(loaders: list[Any]) -> Iterator[tuple[str, object, str, Any]]:
    """Path, holder, name and value of generators, numbers and arrays; each holder once."""
    seen: dict[int, object] = {}
    queue: deque[tuple[str, object, int]] = deque((str(i), one, 0) for i, one in enumerate(loaders))
    while queue and len(seen) < _OBJECTS:
        path, owner, depth = queue.popleft()
        if id(owner) in seen:
            continue
        seen[id(owner)] = owner
        theirs = type(owner).__module__.partition(".")[0] in _THEIR_OWN
        for name, value in _parts(owner):
            at = f"{path}.{name}"
            if isinstance(value, _LEAVES):
                if not theirs and not isinstance(owner, DataLoader) and _is_small(value):
                    yield at, owner, name, value
            elif depth < _DEPTH and _is_entered(value):
                queue.append((at, value, depth + 1))


def _parts(owner: Any) -> list[tuple[str, Any]]:
    if type(owner) is dict:
        return [(str(key), owner[key]) for key in islice(owner, _ITEMS)]
    if type(owner) in {list, tuple}:
        return [(str(i), value) for i, value in enumerate(owner[:_ITEMS])]
    try:
        return list(vars(owner).items())
    except TypeError:  # it has slots, or is of a class in C
        return []


def _is_entered(value: object) -> bool:
    return not (isinstance(value, str | bytes | type | torch.nn.Module) or callable(value))


def _is_small(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes <= _MOST_BYTES and value.dtype.kind in "biuf" and value.flags.writeable
    return not isinstance(value, torch.Tensor) or value.nbytes <= _MOST_BYTES


def _is_of_sampler(path: str) -> bool:
    return not {"sampler", "batch_sampler"}.isdisjoint(path.split("."))


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return json.dumps(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return json.dumps(generator.get_state(legacy=False), default=np.ndarray.tolist)
    return json.dumps(generator.bit_generator.state, default=np.ndarray.tolist)


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
        return
    saved = json.loads(state)
    if isinstance(generator, random.Random):
        version, internal, gauss = saved
        generator.setstate((version, tuple(internal), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_with_arrays(saved))
    else:
        generator.bit_generator.state = _with_arrays(saved)


def _with_arrays(state: Any) -> Any:
    """A state of numpy, whose lists were arrays."""
    if isinstance(state, dict):
        return {name: _with_arrays(value) for name, value in state.items()}
    if isinstance(state, list):
        kind = np.uint32 if max(state) < 1 << 32 else np.uint64
        return np.array(state, kind)
    return state
