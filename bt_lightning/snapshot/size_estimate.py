"""Estimates the size of a run's snapshots, and collects tensors to encode before the first save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.local_shards import stored_bytes
from bt_lightning.snapshot.module_kinds import reshard

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_HEADER = 256
"""Bytes of one tensor's entries in a header and in the tree."""
_DUMPING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
)


def state_size(
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    left_out: Collection[str] = (),
) -> int:
    """Estimated bytes of the weights, buffers and optimizer states, without weights `left_out`.

    Of a DTensor, this rank's share of what is stored; FSDP2 modules are resharded.

    An optimizer has no state before its first step; its later state is estimated as two tensors per
    weight if it has `betas`, one if it has a `momentum`.
    """
    reshard(module)
    stored = (each for name, each in module.named_parameters() if name not in left_out)
    size = _size([*stored, *module.buffers()])
    for optimizer in optimizers:
        if optimizer.state:
            values = (v for state in optimizer.state.values() for v in _values(state))
            size += _size(value for value in values if isinstance(value, torch.Tensor))
            continue
        for group in optimizer.param_groups:
            copies = 2 if "betas" in group else 1 if group.get("momentum") else 0
            size += copies * _size(weight for weight in group["params"] if weight.requires_grad)
    return size


def alias_large_groups(
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    left_out: Collection[str] = (),
) -> dict[str, Any]:
    """The large groups of tensors of the next checkpoint: aliases of the tensors in new dicts.

    Weights `left_out` are not in it.

    Called on the training thread of the rank that writes. Runs no user code: a module or optimizer
    with its own `state_dict` or hooks is left out, since those may be slow, have side effects, or
    wait for other ranks.
    """
    found: dict[str, Any] = {}
    if all(map(_is_stock, module.modules())):
        weights = module.state_dict()
        for name in left_out:
            weights.pop(name, None)
        found["state_dict"] = weights
    if all(map(_is_stock, optimizers)):
        states = [optimizer.state_dict()["state"] for optimizer in optimizers]
        found["optimizer_states"] = [{"state": _aliases(state)} for state in states]
    return found


def _is_stock(owner: torch.nn.Module | torch.optim.Optimizer) -> bool:
    """Whether the `state_dict` of this module or optimizer runs only torch's code."""
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
        size += _HEADER + (stored_bytes(tensor) if tensor.layout is torch.strided else 0)
    return size
