"""Fragments: encoded groups of tensors that later saves reuse if the groups did not change.

A training state consists of a few large, flat groups of tensors (the weights, an optimizer's state)
and little else. The JSON of such a group and the names of its tensors change only when the model or
the optimizer does. Comparing a tensor with that of the previous save takes one microsecond,
encoding it takes ten.
"""

from __future__ import annotations

import operator
from array import array
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.safetensors_layout import header_row
from bt_lightning.snapshot.tensor_address import tensor_address
from bt_lightning.tree_document import OTHER_WEIGHTS_KEYS, WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.snapshot.safetensors_layout import Row
    from bt_lightning.snapshot.tensor_address import TensorAddress

_GROUP_DEPTH = 3
_PLAIN = {type(None), bool, int, float, str}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_DICTS = {dict, OrderedDict}
_KEYS = {str, int}
_DTYPE, _REQUIRES_GRAD = map(operator.attrgetter, ("dtype", "requires_grad"))


@dataclass(frozen=True, eq=False)
class Fragment:
    """The encoding of one group of tensors."""

    matches: Callable[[Any], bool]
    """Whether a value would be encoded to this same fragment, with its tensors at the same
    addresses."""
    text: str
    """The group's tree as JSON."""
    tensors: dict[str, dict[str, torch.Tensor]]
    """File -> name -> tensor."""
    refs: dict[tuple[Any, ...], dict[str, str]]
    """Identity of a tensor -> its file and name."""
    data_pointers: frozenset[int]
    """Addresses of its tensors, to see quickly that two groups share no tensor."""
    wholes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name -> the DTensor of which a tensor is this rank's part."""

    def prepare(self) -> None:
        """Compute the cached properties in advance."""
        _ = self.rows, self.tensor_addresses

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """File -> the header rows of its tensors, sorted."""
        return {
            file: sorted(header_row(name, tensor) for name, tensor in tensors.items())
            for file, tensors in self.tensors.items()
        }

    @cached_property
    def tensor_addresses(self) -> dict[str, list[TensorAddress]]:
        """File -> the addresses of its tensors."""
        return {
            file: [
                tensor_address(name, tensor, self.wholes.get(name))
                for name, tensor in tensors.items()
            ]
            for file, tensors in self.tensors.items()
        }


def weights_key(checkpoint: Mapping[str, Any]) -> str:
    """The entry of `checkpoint` whose tensors are the model's weights."""
    names = () if WEIGHTS_KEY in checkpoint else OTHER_WEIGHTS_KEYS
    return next((name for name in names if _is_flat(checkpoint.get(name))), WEIGHTS_KEY)


def _is_flat(value: Any) -> bool:
    """Whether `value` is a non-empty mapping of tensors, as a module's state is."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(item, torch.Tensor) for item in value.values())
    )


def is_group(path: tuple[str, ...]) -> bool:
    """Whether a Lightning checkpoint has a group of tensors at `path`."""
    return path == (WEIGHTS_KEY,) or (
        len(path) == _GROUP_DEPTH and path[0] == "optimizer_states" and path[2] == "state"
    )


def comparison_with(value: Any) -> Callable[[Any], bool] | None:
    """A function that compares another value with `value`: whether both have the same encoding.

    None unless `value` is a (nested) dict of dense tensors and plain values. The function keeps the
    tensors alive. It detects a tensor with another address, shape, strides or dtype.
    """
    tensors: list[torch.Tensor] = []
    shape = _flatten(value, tensors)
    if shape is None or not tensors or not all(map(_is_plain, tensors)):
        return None
    same_tensors = _RememberedTensors(tensors).matches

    def same(other: Any) -> bool:
        others: list[torch.Tensor] = []
        return _flatten(other, others) == shape and same_tensors(others)

    return same


def _flatten(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Append the tensors to `tensors`; return the rest comparable, or None."""
    kind = type(value)
    if kind in _TENSORS:
        tensors.append(value)
        return kind
    if kind in _PLAIN:
        return (kind, repr(value) if kind is float else value)  # -0.0 == 0.0, but not in JSON
    if kind not in _DICTS or not _KEYS.issuperset(map(type, value)):
        return None
    items: list[Any] = []
    repeated: Any = None
    for item in value.values():  # thousands: common cases are inlined, with the same result
        if type(item) is torch.Tensor:
            tensors.append(item)
            items.append(torch.Tensor)
        elif repeated is not None and type(item) is dict and list(item) == repeated[1]:
            parts = list(item.values())
            if list(map(type, parts)) != repeated[2]:
                repeated = None
                items.append(_flatten(item, tensors))
            else:
                tensors += parts
                items.append(repeated)
        else:
            items.append(found := _flatten(item, tensors))
            kinds = found[2] if type(item) is dict and found else ()
            all_tensors = bool(kinds) and all(each is torch.Tensor for each in kinds)
            repeated = found if all_tensors and set(map(type, item)) == {str} else None
        if items[-1] is None:
            return None
    extra = dict(vars(value)) if kind is OrderedDict else None  # `_metadata` of a state_dict
    return kind, list(value), items, extra


def _is_plain(tensor: torch.Tensor) -> bool:
    dtype = tensor.dtype
    return (
        tensor.layout is torch.strided
        and dtype in SAFETENSORS
        and not dtype.is_complex
        and not tensor.is_neg()
        and not tensor.is_meta
    )


class _RememberedTensors:
    """Compares tensors with those of the previous save by address, shape, strides and dtype.

    The properties of thousands of tensors are kept in a few dense arrays: one object for each would
    cause as many cache misses at each save, and work for the garbage collector.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors  # kept alive, so that no other tensor gets the same address
        self._data_pointers, self._layouts = _data_pointers(tensors), _layouts(tensors)
        self._negated = _negated(tensors)

    def matches(self, others: list[torch.Tensor]) -> bool:
        """Whether `others` have the same memory and properties at this moment."""
        if len(others) != len(self._tensors):
            return False
        if all(map(operator.is_, others, self._tensors)):  # `.data` may have exchanged the memory
            return (
                _data_pointers(others) == self._data_pointers and _layouts(others) == self._layouts
            )
        alike = (
            all(tensor.layout is torch.strided for tensor in others)
            and _data_pointers(others) == self._data_pointers
            and _layouts(others) == self._layouts
            and _negated(others) == self._negated
        )
        if alike:
            self._tensors = others  # the next save may have the same objects
        return alike


def _data_pointers(tensors: list[torch.Tensor]) -> array[int]:
    return array("Q", map(torch.Tensor.data_ptr, tensors))


def _layouts(tensors: list[torch.Tensor]) -> list[Any]:
    dims = array("B", map(torch.Tensor.dim, tensors))
    sizes = array("q", chain.from_iterable(map(torch.Tensor.size, tensors)))
    contiguous = bytes(map(torch.Tensor.is_contiguous, tensors))
    strides = [t.stride() for t, is_so in zip(tensors, contiguous, strict=True) if not is_so]
    grads = bytes(map(_REQUIRES_GRAD, tensors))
    return [list(map(_DTYPE, tensors)), dims, sizes, contiguous, strides, grads]


def _negated(tensors: list[torch.Tensor]) -> bytes:
    return bytes(map(torch.Tensor.is_neg, tensors))
