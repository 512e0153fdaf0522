"""Digests that tell values and training data apart, the same at each start of a script.

No code of a script runs for them: they look at what objects hold, and at no more than the first,
the last and a few other values of what is long.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from enum import Enum
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xxhash
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Subset

COMPILED: Final = "_orig_mod."
"""Prefix that `torch.compile` adds to the names of a wrapped module."""
_MOST: Final = 64
"""Attributes of an object, and entries of a mapping, that are looked at."""
_DEPTH: Final = 6
_VALUES: Final = 4096
"""Numbers of an array that are looked at, spread over it; indices of a subset are all."""
_ALL_INDICES: Final = 10_000_000
_TEXT: Final = 4096
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_VARIES: Final = re.compile(
    r"0x[0-9a-fA-F]{6,}"
    r"|[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}"
    r"|\d{4}[-_.]?\d\d[-_.]?\d\d"
    r"(?:[T _-]\d\d[-_:.]?\d\d(?:[-_:.]?\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r"|\d\d[-_:]\d\d[-_:]\d\d"
    r"|\d{9,}"
)
"""What a script makes anew at each start: dates, times, addresses, UUIDs, times of Unix."""
_UNIX_TIMES: Final = (1e9, 4e9)
_first_digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def without_stamps(text: str) -> str:
    """`text` without dates, times, addresses and unique ids."""
    return _VARIES.sub("*", text)


def digest(value: object) -> str:
    """A digest of a value's content: equal for equal values of two processes."""
    hasher = xxhash.xxh3_64()
    _Walk(hasher).add(value)
    return hasher.hexdigest()


def _dataset_digest(dataset: Any) -> str:
    """The digest of a dataset when it was first seen: training may change what it holds."""
    try:
        known = _first_digests.get(dataset)
    except TypeError:  # it cannot be hashed, or has no weak references
        known = None
    if known is None:
        hasher = xxhash.xxh3_64()
        _Walk(hasher).enter(dataset, 0)
        known = hasher.hexdigest()
        with contextlib.suppress(TypeError):
            _first_digests[dataset] = known
    return known


def shapes_digest(module: torch.nn.Module) -> str:
    """A digest of the names and shapes of a module's parameters, compiled or not."""
    hasher = xxhash.xxh3_64()
    for name, parameter in module.named_parameters():
        lazy = is_lazy(parameter)
        plain = name.replace(COMPILED, "")  # the load says what is compiled differently
        hasher.update(f"{plain} {None if lazy else tuple(parameter.shape)}\n".encode())
    return hasher.hexdigest()


class _Walk:
    """One walk over a value; each object is entered once."""

    def __init__(self, hasher: Any) -> None:
        self._hasher = hasher
        self._seen: set[int] = set()

    def add(self, value: object, depth: int = 0) -> None:
        """Add a value and what it holds."""
        if isinstance(value, Dataset) and not isinstance(value, Subset):
            self._note(_dataset_digest(value))
            return
        self.enter(value, depth)

    def enter(self, value: object, depth: int) -> None:
        """Add a value, which is no dataset that was seen."""
        self._note(type(value).__qualname__)
        if isinstance(value, _PLAIN):
            self._note(_plain(value))
        elif isinstance(value, Enum):
            self._note(value.name)
        elif isinstance(value, os.PathLike):
            self._note(without_stamps(os.fsdecode(value)))
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self._array(np.asarray(value))
        elif isinstance(value, range):
            self._note(repr(value))
        elif isinstance(value, torch.nn.Module) or callable(value):
            self._note(getattr(value, "__qualname__", ""))
        elif depth < _DEPTH and id(value) not in self._seen:
            self._seen.add(id(value))
            self._hold(value, depth + 1)

    def _hold(self, value: object, depth: int) -> None:
        if isinstance(value, Subset):
            self._indices(value.indices)
            self.add(value.dataset, depth)
        elif isinstance(value, DataLoader):
            self.add(value.dataset, depth)
        elif isinstance(fingerprint := getattr(value, "_fingerprint", None), str):
            self._note(fingerprint)  # datasets.Dataset: of its data and all that was done to it
        elif isinstance(value, dict):
            named = sorted(((str(key), value[key]) for key in list(value)[:_MOST]), key=_first)
            self._entries(len(value), named, depth)
        elif isinstance(value, set | frozenset):
            self._note(repr(sorted(map(digest, list(value)[:_MOST]))))
        elif isinstance(value, list | tuple | deque):
            self._sequence(value, depth)
        elif type(value).__module__.partition(".")[0] == "omegaconf":
            self._note(without_stamps(str(value)[:_TEXT]))
        elif not _observes(value):
            held = getattr(value, "__dict__", {})
            named = [(name, each) for name, each in held.items() if not name.startswith("__")]
            self._entries(len(named), named[:_MOST], depth)

    def _entries(self, size: int, named: list[tuple[str, Any]], depth: int) -> None:
        self._note(str(size))
        for name, each in named:
            self._note(name)
            self.add(each, depth)

    def _sequence(self, value: Any, depth: int) -> None:
        size = len(value)
        self._note(str(size))
        step = max(1, size // _MOST)
        for index in sorted({*range(0, size, step), *range(max(0, size - 1), size)}):
            self.add(value[index], depth)

    def _indices(self, indices: Any) -> None:
        if len(indices) > _ALL_INDICES:
            self._sequence(indices, 0)
            return
        self._note(str(len(indices)))
        self._hasher.update(np.ascontiguousarray(indices).tobytes())

    def _tensor(self, value: torch.Tensor) -> None:
        self._note(f"{value.dtype} {tuple(value.shape)}")
        if value.layout is torch.strided and not value.is_meta and value.numel():
            flat = value.detach().reshape(-1) if value.is_contiguous() else value.detach().flatten()
            few = flat[_spread(flat.numel(), str(value.device))].cpu()
            self._hasher.update(few.contiguous().view(torch.uint8).numpy().tobytes())

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        self._note(f"{value.dtype} {value.shape}")
        if value.size and not value.dtype.hasobject:
            few = value.reshape(-1)[_spread(value.size, "cpu").numpy()]
            self._hasher.update(np.ascontiguousarray(few).tobytes())

    def _note(self, text: str) -> None:
        self._hasher.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))


def _observes(value: object) -> bool:
    """Whether it is a callback or a logger: what it counts changes, and tells no fits apart."""
    kind = type(value)
    return hasattr(kind, "on_train_batch_end") or hasattr(kind, "log_hyperparams")


def _spread(size: int, device: str) -> torch.Tensor:
    """Indices of the first, the last and some between, `_VALUES` at most."""
    step = max(1, size // (_VALUES - 1))
    indices = torch.arange(0, size, step, device=device)
    return torch.cat([indices, torch.tensor([size - 1], device=device)])


def _plain(value: object) -> str:
    if isinstance(value, str):
        return without_stamps(value[:_TEXT])
    if isinstance(value, bytes):
        return xxhash.xxh3_64_hexdigest(value)
    if isinstance(value, float) and _UNIX_TIMES[0] < value < _UNIX_TIMES[1]:
        return "*"
    return repr(value)


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]
