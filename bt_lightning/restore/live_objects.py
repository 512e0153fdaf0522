"""What a process holds by itself before it loads: its objects can stand for what only pickle saves.

Nothing is imported and nothing of a file is run. A class or function of a file is known by the name
of one that the process holds; an object is known by the digest of its own pickle.
"""

from __future__ import annotations

import types
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.class_allowlist import class_name, function_name, is_function
from bt_lightning.snapshot.pickle_leftovers import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OBJECTS = 50_000
"""Objects that are looked at, at the most: a dataset of a million items is no hyperparameter."""
_ITEMS = 1000
"""Items of one container."""
_TWINS = 50
"""Objects of one class that are pickled to be compared."""
_OUTSIDE = frozenset({"_trainer", "trainer", "_fabric", "fabric", "_logger", "loggers"})
"""Attributes that lead out of a module, to all there is."""
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), torch.Tensor, types.ModuleType)


class LiveObjects:
    """Classes, functions and objects that can be reached from `roots`: a module, a datamodule.

    Looked for when they are first asked for, by the thread that loads.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self._roots = [root for root in roots if root is not None]

    @cached_property
    def _found(self) -> tuple[dict[str, object], dict[str, list[object]]]:
        names: dict[str, object] = {}
        objects: dict[str, list[object]] = {}
        for value in _reachable(self._roots):
            if is_function(value):
                name = function_name(value)
                if name is not None:
                    names.setdefault(name, value)
                continue
            kind = value if isinstance(value, type) else type(value)
            names.setdefault(class_name(kind), kind)
            if value is not kind:
                objects.setdefault(class_name(kind), []).append(value)
        return names, objects

    @property
    def names(self) -> dict[str, object]:
        """Name in files -> class or function."""
        return self._found[0]

    def equal(self, name: str, digest: str) -> object | None:
        """An object of the class `name` whose pickle has this digest."""
        for value in self._found[1].get(name, ())[:_TWINS]:
            try:
                if digest_of(value) == digest:
                    return value
            except Exception:  # noqa: BLE001, S112 - an object that cannot be pickled is not equal
                continue
        return None


def _reachable(roots: Iterable[object]) -> Iterator[object]:
    """Each object once, those that are near first."""
    seen: dict[int, object] = {}  # keeps them: an id is of one object only while that lives
    rest = deque(roots)
    while rest and len(seen) < _OBJECTS:
        value = rest.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if not isinstance(value, type) and not is_function(value):
            rest.extend(_inside(value))


def _inside(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        items = list(value.items())[:_ITEMS]
        yield from (part for item in items for part in item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from list(value)[:_ITEMS]
    elif isinstance(value, types.MethodType):
        yield value.__self__
    try:
        own = dict(vars(value))
    except TypeError:  # it has slots, or is of C
        return
    yield from (part for name, part in own.items() if name not in _OUTSIDE)
