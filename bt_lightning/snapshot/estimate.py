"""How large the snapshots of a run will be, known before the first one is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEADER = 256
"""Bytes that one tensor adds to a header and to the tree."""


def state_size(module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bytes of the weights, buffers and optimizer states.

    An optimizer that has made no step yet has no state; what it will have is guessed from its kind:
    two tensors like each weight with `betas`, one with a `momentum`.
    """
    size = _size([*module.parameters(), *module.buffers()])
    for optimizer in optimizers:
        if optimizer.state:
            values = (v for state in optimizer.state.values() for v in _values(state))
            size += _size(value for value in values if isinstance(value, torch.Tensor))
            continue
        for group in optimizer.param_groups:
            copies = 2 if "betas" in group else 1 if group.get("momentum") else 0
            size += copies * _size(weight for weight in group["params"] if weight.requires_grad)
    return size


def outline(module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """The large groups of the next checkpoint: aliases of their tensors, in dicts of its own.

    Training thread. Without what a class of the user's makes by a `state_dict` of its own, which
    may cost something, or count.
    """
    found: dict[str, Any] = {}
    if type(module).state_dict is torch.nn.Module.state_dict:
        found["state_dict"] = module.state_dict()
    if all(type(opt).state_dict is torch.optim.Optimizer.state_dict for opt in optimizers):
        states = [optimizer.state_dict()["state"] for optimizer in optimizers]
        found["optimizer_states"] = [{"state": _aliases(state)} for state in states]
    return found


def _aliases(value: Any) -> Any:
    if type(value) is dict:
        return {key: _aliases(item) for key, item in value.items()}
    return value.detach() if isinstance(value, torch.Tensor) else value


def _values(state: Any) -> Iterable[Any]:
    return state.values() if isinstance(state, dict) else ()


def _size(tensors: Iterable[torch.Tensor]) -> int:
    size = 0
    for tensor in tensors:
        if torch.nn.parameter.is_lazy(tensor):
            continue  # it has no shape before the first forward
        size += _HEADER + (tensor.nbytes if tensor.layout is torch.strided else 0)
    return size
