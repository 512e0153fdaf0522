"""Parts of a state that look the same at each save: what was encoded of them once is used again.

A training state is a few large, flat groups of tensors (the weights, an optimizer's state) and a
little else. The tree of such a group, and the names it gives to its tensors, change only when the
model or the optimizer does; comparing a tensor with the one that was there last time costs a
microsecond, encoding it ten.
"""

from __future__ import annotations

import operator
from array import array
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.safetensors_layout import row
from bt_lightning.snapshot.tensor_address import tensor_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.snapshot.safetensors_layout import Row
    from bt_lightning.snapshot.tensor_address import TensorAddress

WEIGHTS_KEY: Final = "state_dict"
"""The entry of a Lightning checkpoint whose tensors are the model's weights."""
_OTHER_KEYS: Final = ("model", "module", "net", "network")
"""What those call it who save by Fabric."""
_GROUP_DEPTH = 3
_PLAIN = {type(None), bool, int, float, str}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_DICTS = {dict, OrderedDict}
_KEYS = {str, int}
_DTYPE, _REQUIRES_GRAD = map(operator.attrgetter, ("dtype", "requires_grad"))


@dataclass(frozen=True, eq=False)
class Fragment:
    """What encoding one group of tensors came to."""

    same: Callable[[Any], bool]
    """Whether a value would be encoded to this very fragment, with its tensors in the same place
    in memory."""
    text: str
    """Its tree, as JSON."""
    tensors: dict[str, dict[str, torch.Tensor]]
    """File -> name -> tensor."""
    refs: dict[tuple[Any, ...], dict[str, str]]
    """Identity of a tensor -> its file and name."""
    places: frozenset[int]
    """Addresses of its tensors: groups that share none share no tensor."""

    def prepare(self) -> None:
        """Make at once what is otherwise made when it is first asked for."""
        _ = self.rows, self.spots

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """File -> the rows of its tensors, sorted."""
        return {
            file: sorted(row(name, tensor) for name, tensor in tensors.items())
            for file, tensors in self.tensors.items()
        }

    @cached_property
    def spots(self) -> dict[str, list[TensorAddress]]:
        """File -> where its tensors lie in memory."""
        return {
            file: [tensor_address(name, tensor) for name, tensor in tensors.items()]
            for file, tensors in self.tensors.items()
        }


def weights_key(checkpoint: Mapping[str, Any]) -> str:
    """The entry of `checkpoint` whose tensors are the model's weights."""
    names = () if WEIGHTS_KEY in checkpoint else _OTHER_KEYS
    return next((name for name in names if _is_flat(checkpoint.get(name))), WEIGHTS_KEY)


def _is_flat(value: Any) -> bool:
    """Whether `value` looks like the state of a module: names and tensors."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(item, torch.Tensor) for item in value.values())
    )


def is_group(path: tuple[str, ...]) -> bool:
    """Whether the tensors of a Lightning checkpoint lie together at `path`."""
    return path == (WEIGHTS_KEY,) or (
        len(path) == _GROUP_DEPTH and path[0] == "optimizer_states" and path[2] == "state"
    )


def watch(value: Any) -> Callable[[Any], bool] | None:
    """A function that tells whether another value is encoded as `value`; None if that is unknown.

    It is known for (nested) dicts of dense tensors and plain values. The function holds on to the
    tensors; a weight that was put elsewhere in memory, or has another shape or dtype, is seen.
    """
    tensors: list[torch.Tensor] = []
    shape = _flatten(value, tensors)
    if shape is None or not tensors or not all(map(_is_plain, tensors)):
        return None
    same_tensors = _Tensors(tensors).same

    def same(other: Any) -> bool:
        others: list[torch.Tensor] = []
        return _flatten(other, others) == shape and same_tensors(others)

    return same


def _flatten(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Collect the tensors; the rest as a value that can be compared, None if that is unknown."""
    kind = type(value)
    if kind in _TENSORS:
        tensors.append(value)
        return kind
    if kind in _PLAIN:
        return (kind, repr(value) if kind is float else value)  # -0.0 is written otherwise than 0.0
    if kind not in _DICTS or not _KEYS.issuperset(map(type, value)):
        return None
    items: list[Any] = []
    twin: Any = None
    for item in value.values():  # the branches come to what `_flatten` would: there are thousands
        if type(item) is torch.Tensor:
            tensors.append(item)
            items.append(torch.Tensor)
        elif twin is not None and type(item) is dict and list(item) == twin[1]:
            parts = list(item.values())
            if list(map(type, parts)) != twin[2]:
                twin = None
                items.append(_flatten(item, tensors))
            else:
                tensors += parts
                items.append(twin)
        else:
            items.append(found := _flatten(item, tensors))
            all_tensors = type(item) is dict and found and set(found[2]) == {torch.Tensor}
            twin = found if all_tensors and set(map(type, item)) == {str} else None
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


class _Tensors:
    """Whether other tensors are these, or views of the same memory that look the same.

    What is remembered of thousands of tensors is a few dense arrays: objects for each of them would
    be as many cache misses at each save, and work for the garbage collector.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors  # alive, or another might get the memory of one
        self._places, self._forms = _places(tensors), _forms(tensors)
        self._negated = _negated(tensors)

    def same(self, others: list[torch.Tensor]) -> bool:
        """As they are at this moment."""
        if len(others) != len(self._tensors):
            return False
        if all(map(operator.is_, others, self._tensors)):  # only their memory can be another
            return _places(others) == self._places and _forms(others) == self._forms
        alike = (
            all(tensor.layout is torch.strided for tensor in others)
            and _places(others) == self._places
            and _forms(others) == self._forms
            and _negated(others) == self._negated
        )
        if alike:
            self._tensors = others  # which may come again
        return alike


def _places(tensors: list[torch.Tensor]) -> array[int]:
    return array("Q", map(torch.Tensor.data_ptr, tensors))


def _forms(tensors: list[torch.Tensor]) -> list[Any]:
    dims = array("B", map(torch.Tensor.dim, tensors))
    sizes = array("q", chain.from_iterable(map(torch.Tensor.size, tensors)))
    contiguous = bytes(map(torch.Tensor.is_contiguous, tensors))
    strides = [t.stride() for t, is_so in zip(tensors, contiguous, strict=True) if not is_so]
    grads = bytes(map(_REQUIRES_GRAD, tensors))
    return [list(map(_DTYPE, tensors)), dims, sizes, contiguous, strides, grads]


def _negated(tensors: list[torch.Tensor]) -> bytes:
    return bytes(map(torch.Tensor.is_neg, tensors))
