"""How large the snapshots of a run will be, known before the first one is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEADER = 256
"""Bytes that one tensor adds to a header and to the tree."""
_DUMPING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
)


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

    Training thread of one rank. Runs no code but torch's: a `state_dict` or a hook of the user's
    may cost something, count, or wait for the other ranks, so what has one is left out.
    """
    found: dict[str, Any] = {}
    if all(map(_is_stock, module.modules())):
        found["state_dict"] = module.state_dict()
    if all(map(_is_stock, optimizers)):
        states = [optimizer.state_dict()["state"] for optimizer in optimizers]
        found["optimizer_states"] = [{"state": _aliases(state)} for state in states]
    return found


def _is_stock(owner: torch.nn.Module | torch.optim.Optimizer) -> bool:
    """Whether torch alone makes the `state_dict` of this module, or optimizer."""
    base = torch.nn.Module if isinstance(owner, torch.nn.Module) else torch.optim.Optimizer
    own = any(
        getattr(type(owner), name, None) is not getattr(base, name, None) for name in _DUMPING
    )
    return not own and not any(vars(owner).get(hooks) for hooks in _HOOKS)


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
