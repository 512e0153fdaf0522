"""Parts of a state that look the same at each save: what was encoded of them once is used again.

A training state is a few large, flat groups of tensors (the weights, an optimizer's state) and a
little else. The tree of such a group, and the names it gives to its tensors, change only when the
model or the optimizer does; comparing a tensor with the one that was there last time costs a
microsecond, encoding it ten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.dtypes import SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST = 16
"""Smaller groups are not worth the memory."""
_PLAIN = (type(None), bool, int, float, str)


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


def watch(value: Any) -> Callable[[Any], bool] | None:
    """A function that tells whether another value is encoded as `value`; None if that is unknown.

    It is known for (nested) dicts of dense tensors and plain values. The function holds on to the
    tensors; a weight that was put elsewhere in memory, or has another shape or dtype, is seen.
    """
    count, same = _watch(value)
    return same if count >= _LEAST else None


def _watch(value: Any) -> tuple[int, Callable[[Any], bool] | None]:
    kind = type(value)
    if kind in {torch.Tensor, torch.nn.Parameter}:
        return 1, _tensor(value)
    if kind in _PLAIN:
        return 0, lambda other: type(other) is kind and other == value
    if kind in {dict, OrderedDict}:
        return _dict(value)
    return 0, None


def _dict(value: dict[Any, Any]) -> tuple[int, Callable[[Any], bool] | None]:
    kind, keys = type(value), list(value)
    if any(type(key) not in {str, int} for key in keys):
        return 0, None
    extra = dict(getattr(value, "__dict__", {}))  # `_metadata` of a state_dict
    total, checks = 0, []
    for item in value.values():
        count, check = _watch(item)
        if check is None:
            return 0, None
        total += count
        checks.append(check)

    def same(other: Any) -> bool:
        if type(other) is not kind or list(other) != keys:
            return False
        if getattr(other, "__dict__", extra) != extra:
            return False
        return all(check(item) for check, item in zip(checks, other.values(), strict=True))

    return total, same


def _tensor(tensor: torch.Tensor) -> Callable[[Any], bool] | None:
    dtype, shape, kind = tensor.dtype, tensor.shape, type(tensor)
    if tensor.layout is not torch.strided or dtype not in SAFETENSORS or dtype.is_complex:
        return None
    if tensor.is_neg() or tensor.is_meta:
        return None
    place, stride, grad = tensor.data_ptr(), tensor.stride(), tensor.requires_grad

    def same(other: Any) -> bool:
        return (
            type(other) is kind
            and other.layout is torch.strided
            and other.data_ptr() == place
            and other.dtype is dtype
            and other.shape == shape
            and other.stride() == stride
            and other.requires_grad is grad
            and not other.is_neg()
        )

    return same
