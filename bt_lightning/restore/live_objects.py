"""Finds classes and objects that the process already has, to use instead of unpickling a file.

Nothing is imported and no code of a file runs. A class or function in a file matches one of the
process by its name; an object matches by the digest of its pickle.
"""

from __future__ import annotations

import types
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.class_allowlist import class_name, function_name, is_function
from bt_lightning.snapshot.metrics_at_rest import at_rest
from bt_lightning.snapshot.pickle_leftovers import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OBJECTS = 50_000
"""Maximum number of objects to visit: a dataset may have millions."""
_ITEMS = 1000
"""Maximum number of items to visit in one container."""
_COMPARED_OBJECTS = 50
"""Maximum number of objects of one class to pickle for comparison."""
_SKIPPED_ATTRIBUTES = frozenset({"_trainer", "trainer", "_fabric", "fabric", "_logger", "loggers"})
"""Attributes of a module that lead to the whole Trainer."""
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), torch.Tensor, types.ModuleType)


class LiveObjects:
    """Classes, functions and objects reachable from `roots` (a module, a datamodule).

    They are collected at the first use, on the thread that loads.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self._roots = [root for root in roots if root is not None]
        self._taken: set[int] = set()
        """Identities of what `find_equal_at_rest` found."""

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

    def find_equal(self, name: str, digest: str) -> object | None:
        """An object of the class `name` whose pickle has this digest; None if there is none."""
        for value in self._found[1].get(name, ())[:_COMPARED_OBJECTS]:
            try:
                if digest_of(value) == digest:
                    return value
            except Exception:  # noqa: BLE001, S112 - an object that cannot be pickled is not equal
                continue
        return None

    def find_equal_at_rest(self, name: str, digest: str) -> object | None:
        """A part of a module, of the class `name`, that has this digest before its metrics count.

        One that was not found yet, if there is one: metrics of one kind are not each other's.
        """
        parts = {
            id(part)
            for root in self._roots
            if isinstance(root, torch.nn.Module)
            for part in root.modules()
        }
        found = None
        for value in self._found[1].get(name, ())[:_COMPARED_OBJECTS]:
            try:
                resting = at_rest(value) if id(value) in parts else None
                if resting is None or digest_of(resting) != digest:
                    continue
            except Exception:  # noqa: BLE001, S112 - as above
                continue
            found = value
            if id(value) not in self._taken:
                break
        self._taken.add(id(found))
        return found


def _reachable(roots: Iterable[object]) -> Iterator[object]:
    """Each object once, breadth first."""
    seen: dict[int, object] = {}  # keeps the objects alive, so that no id is used again
    queue = deque(roots)
    while queue and len(seen) < _OBJECTS:
        value = queue.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if not isinstance(value, type) and not is_function(value):
            queue.extend(_children(value))


def _children(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        items = list(value.items())[:_ITEMS]
        yield from (part for item in items for part in item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from list(value)[:_ITEMS]
    elif isinstance(value, types.MethodType):
        yield value.__self__
    try:
        own = dict(vars(value))
    except TypeError:  # an object with slots, or of a class in C
        return
    yield from (part for name, part in own.items() if name not in _SKIPPED_ATTRIBUTES)
