"""The state of modules and optimizers whose tensors lie on several ranks: names, parts, layouts.

Every rank calls these for itself: no collective runs, no optimizer takes a step, and no tensor is
copied. DTensors are known by the name of their class, so that a torch without distributed works.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.sharding.layouts import Layout, placements_in_boxes
from bt_lightning.sharding.structure import HeldTensor
from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.fsdp1_shards import (
    WRAPPERS,
    fsdp1_module_state,
    fsdp1_optimizer_state,
    layout_of_shards,
    only_shard,
    without_wrappers,
)
from bt_lightning.snapshot.module_kinds import has_stock_hooks, is_fsdp1, kind_of, reshard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DTENSOR: Final = "DTensor"
_SHARDED: Final = "ShardedTensor"
EXTRA_STATE: Final = "_extra_state"
"""Last part of the name of what `get_extra_state` returns."""
local_part: Final = attrgetter("_local_tensor")
"""The part of a DTensor that this rank has: `to_local` without autograd, in 0.05 microseconds."""


def is_dtensor(value: object) -> bool:
    """Whether a value is a DTensor, parameter or not."""
    return type(value).__name__ == _DTENSOR


def is_part(value: object) -> bool:
    """Whether a value is a tensor of which a rank has a part: a DTensor, or FSDP1's."""
    return type(value).__name__ in {_DTENSOR, _SHARDED}


def stored_part(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """What this rank has of a tensor: the live memory, maybe of 0 items; a plain one as it is.

    Raises:
        UnsupportedStateError: the part is no dense tensor (quantised, or not computed yet).
    """
    if not is_part(tensor):
        return tensor
    part: torch.Tensor = local_part(tensor) if is_dtensor(tensor) else only_shard(tensor, name)
    if type(part).__name__ == "AsyncCollectiveTensor":  # of a redistribution under way
        part = part.wait()  # type: ignore[attr-defined]
    if type(part) not in {torch.Tensor, torch.nn.Parameter} or part.layout is not torch.strided:
        msg = (
            f"{name} is a DTensor of {type(part).__name__} ({part.layout}): expected one whose"
            " local tensor is dense. Keep it out of the checkpoint, or save it as a dense tensor"
        )
        raise UnsupportedStateError(msg)
    return part


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of a DTensor, those of this rank's part by how many ranks have it."""
    if not is_dtensor(tensor):
        return tensor.nbytes
    dtensor: Any = tensor
    lengths = zip(dtensor.placements, dtensor.device_mesh.mesh.shape, strict=True)
    copies: int = math.prod(
        length for each, length in lengths if type(each).__name__ == "Replicate"
    )
    part: torch.Tensor = local_part(tensor)
    return -(-part.nbytes // copies)


def layout_of(tensor: torch.Tensor, name: str = "a tensor") -> Layout | None:
    """The mesh and placements of a tensor, in global ranks; None for a plain one.

    Raises:
        UnsupportedStateError: a placement gives no box to each rank, as `Partial` does.
    """
    if type(tensor).__name__ == _SHARDED:
        return layout_of_shards(tensor, name)
    if not is_dtensor(tensor):
        return None
    dtensor: Any = tensor
    mesh = dtensor.device_mesh.mesh
    shape = tuple(mesh.shape)
    cuts = [_cut(each, tensor.dim()) for each in dtensor.placements]
    known = [each for each in cuts if each is not None]
    placements = placements_in_boxes(shape, known) if len(known) == len(cuts) else None
    if placements is None:
        msg = (
            f"{name} is placed as {dtensor.placements} on a mesh of {list(shape)} ranks: expected"
            " Shard or Replicate, by which each rank has a box of it. Redistribute it before the"
            " save"
        )
        raise UnsupportedStateError(msg)
    return Layout(shape, tuple(mesh.flatten().tolist()), placements)


def _cut(placement: Any, dims: int) -> tuple[int | None, int] | None:
    """The dimension that a placement of torch cuts, and its `split_factor`; None of any other."""
    kind = type(placement).__name__
    if kind == "Replicate":
        return None, 1
    if kind == "Shard":
        return placement.dim % dims, 1
    return (placement.dim % dims, placement.split_factor) if kind == "_StridedShard" else None


def held_tensor(tensor: torch.Tensor, name: str, layouts: dict[Any, Layout | None]) -> HeldTensor:
    """A tensor as this rank sees it; `layouts` keeps what is alike for thousands of them.

    Raises:
        UnsupportedStateError: as `layout_of` and `stored_part`.
    """
    layout = layout_of(tensor, name) if type(tensor).__name__ == _SHARDED else None
    if is_dtensor(tensor):
        dtensor: Any = tensor
        key = (dtensor.device_mesh, dtensor.placements, tensor.dim())
        layout = layouts.get(key)
        if layout is None:
            layout = layouts[key] = layout_of(tensor, name)
        _check_part(tensor, name, layout)
    shape, dtype = tuple(tensor.shape), SAFETENSORS.get(tensor.dtype)
    if dtype is None:  # stored as bytes
        return HeldTensor("U8", (*shape, tensor.element_size()), layout)
    return HeldTensor(dtype, shape, layout)


def _check_part(tensor: torch.Tensor, name: str, layout: Layout | None) -> None:
    """Refuse a DTensor whose part is not the box that its placements give: uneven strided cuts."""
    dtensor: Any = tensor
    rank, part = dtensor.device_mesh.get_rank(), stored_part(tensor, name)
    assert layout is not None
    if rank in layout.ranks:
        sizes = layout.box(tensor.shape, rank).sizes
        if sizes != tuple(part.shape) and (part.numel() or math.prod(sizes)):
            msg = (
                f"{name} {list(tensor.shape)} has {list(part.shape)} on rank {rank}: expected"
                f" {list(sizes)} by its placements {dtensor.placements}. Redistribute it"
            )
            raise UnsupportedStateError(msg)


def module_state(module: torch.nn.Module) -> dict[str, Any]:
    """Name -> parameter or persistent buffer, the live ones; the keys of `state_dict`.

    Called on every rank, on the training thread. FSDP2 modules are resharded. Names of wrappers
    (DDP, `torch.compile`, activation checkpoints) are left out; tied parameters are one object
    under several names. Of FSDP1 it is a copy, for which ranks communicate.
    """
    found: dict[str, Any] = {}
    stack = [("", module)]
    while stack:
        prefix, part = stack.pop()
        kind = kind_of(type(part))
        if kind.flat:
            dumped = fsdp1_module_state(module)
            return {without_wrappers(name): value for name, value in dumped.items()}
        if kind.sharded:
            part.reshard()  # type: ignore[operator]
        if not kind.stock or not has_stock_hooks(part):  # its own code says what is stored
            reshard(part)
            dumped = part.state_dict(prefix=prefix, keep_vars=True)
            found.update((without_wrappers(name), value) for name, value in dumped.items())
            continue
        _add_own(part, prefix, found)
        if kind.extra:
            found[prefix + EXTRA_STATE] = part.get_extra_state()
        for name, child in reversed(part._modules.items()):
            if child is not None:
                hidden = name in WRAPPERS or (kind.distributed and name == "module")
                stack.append((prefix if hidden else f"{prefix}{name}.", child))
    return found


def named_modules(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules by the names that `module_state` gives their tensors; wrappers under none."""
    found: dict[str, torch.nn.Module] = {}
    stack = [("", module)]
    while stack:
        name, part = stack.pop()
        found[name] = part  # the innermost of one name: what wrappers hold
        for child_name, child in part._modules.items():
            if child is not None:
                distributed = kind_of(type(part)).distributed and child_name == "module"
                hidden = child_name in WRAPPERS or distributed
                stack.append((name if hidden else f"{name}.{child_name}".lstrip("."), child))
    return found


def _add_own(module: torch.nn.Module, prefix: str, found: dict[str, Any]) -> None:
    """Add the parameters and persistent buffers of this very module."""
    for name, weight in module._parameters.items():
        if weight is not None:
            found[prefix + name] = weight
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            found[prefix + name] = buffer


def optimizer_state(
    module: torch.nn.Module | Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state of an optimizer by names of parameters; empty before its first step.

    Called on every rank. Groups have the names of their parameters; all but `params` is copied,
    tensors are the live ones.

    Args:
        module: whose parameters have names, or what `module_state` made of it (not of FSDP1).
        optimizer: a torch optimizer, not wrapped.

    Raises:
        UnsupportedStateError: the optimizer trains what is no parameter of the module.
    """
    if isinstance(module, torch.nn.Module):
        if is_fsdp1(module):
            return fsdp1_optimizer_state(module, optimizer)
        module = module_state(module)
    weights = module
    names: dict[int, str] = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), name)

    def named(weight: Any) -> str:
        name = names.get(id(weight))
        if name is None:
            is_tensor = isinstance(weight, torch.Tensor)
            what = f"a tensor of shape {list(weight.shape)}" if is_tensor else repr(weight)
            msg = (
                f"an optimizer ({type(optimizer).__name__}) has in its groups or in its state"
                f" {what}, which is no parameter of the module: expected parameters of"
                " the module that is saved, which give their names to its state"
            )
            raise UnsupportedStateError(msg)
        return name

    groups = [
        {**group, "params": [named(weight) for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    state = {
        named(weight): dict(entry) if isinstance(entry, dict) else entry
        for weight, entry in optimizer.state.items()
    }
    return {"state": state, "param_groups": groups}


def live_state(
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`state_dict` and `optimizer_states` of a sharded state, of live tensors; on every rank.

    `weights`: what `module_state` returns, if that is known.

    Raises:
        UnsupportedStateError: as `optimizer_state`.
    """
    weights = module_state(module) if weights is None else weights
    names = module if is_fsdp1(module) else weights
    return {
        "state_dict": weights,
        "optimizer_states": [optimizer_state(names, each) for each in optimizers],
    }
