"""The state of FSDP1 modules (`FullyShardedDataParallel`), by torch's public functions.

What a rank has of a parameter there is an interval of its flattened items, and only private names
tell which. So torch itself makes the sharded state: an all-gather for each unit, and two for its
optimizer state, into new memory, as every save of such a module does. Every rank calls the
functions of states at the same moment.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.sharding.boxes import Box
from bt_lightning.sharding.layouts import REPLICATED, Layout, Placement

if TYPE_CHECKING:
    from collections.abc import Iterator

WRAPPERS: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Attributes by which torch's wrappers of a module hold it: no part of a name."""


def fsdp1_module_state(module: torch.nn.Module) -> dict[str, Any]:
    """Name -> ShardedTensor (DTensor, if the module has a mesh) or plain tensor: copies."""
    with _sharded_states(module):
        return dict(module.state_dict())


def fsdp1_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state of an optimizer by names of parameters: copies; empty before its first step."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with _sharded_states(module):
        found: dict[str, Any] = FullyShardedDataParallel.optim_state_dict(module, optimizer)
    return found


def fsdp1_names(module: torch.nn.Module) -> dict[int, str]:
    """Identity of a parameter -> its first name, as states have it."""
    found: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), without_wrappers(name))
    return found


def set_fsdp1_module_state(module: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Put in place what `fsdp1_module_state` gave, filled; its names may lack those of wrappers."""
    with _sharded_states(module):
        names = module.state_dict()
        module.load_state_dict({name: weights[without_wrappers(name)] for name in names})


def set_fsdp1_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Put in place what `fsdp1_optimizer_state` would give; the optimizer takes no step."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with _sharded_states(module):
        own = FullyShardedDataParallel.optim_state_dict_to_load(module, optimizer, state)
    optimizer.load_state_dict(own)


def without_wrappers(name: str) -> str:
    """A name without those by which torch's wrappers of a module hold it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


@contextmanager
def _sharded_states(module: torch.nn.Module) -> Iterator[None]:
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardedOptimStateDictConfig,
        ShardedStateDictConfig,
        StateDictType,
    )

    with (
        warnings.catch_warnings(),
        FullyShardedDataParallel.state_dict_type(
            module,
            StateDictType.SHARDED_STATE_DICT,
            ShardedStateDictConfig(offload_to_cpu=False),
            ShardedOptimStateDictConfig(offload_to_cpu=False),
        ),
    ):
        warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about its own calls
        yield


def only_shard(tensor: Any, name: str) -> torch.Tensor:
    """What this rank has of a ShardedTensor, maybe nothing.

    Raises:
        UnsupportedStateError: it has several parts.
    """
    shards = tensor.local_shards()
    if len(shards) > 1:
        msg = f"{name} has {len(shards)} shards on one rank: expected one at most"
        raise UnsupportedStateError(msg)
    return shards[0].tensor if shards else torch.empty(0, dtype=tensor.dtype)


def layout_of_shards(tensor: Any, name: str) -> Layout:
    """The layout of a ShardedTensor that is cut along one dimension, as FSDP1 does.

    Raises:
        UnsupportedStateError: it is cut in another way.
    """
    shards = sorted(tensor.metadata().shards_metadata, key=lambda each: each.shard_offsets)
    shape = tuple(tensor.shape)
    ranks = tuple(torch.distributed.get_process_group_ranks(tensor._process_group))
    cut = [dim for dim in range(len(shape)) if any(each.shard_offsets[dim] for each in shards)]
    where = Placement(cut[0] if cut else 0) if shape else REPLICATED
    layout = Layout((len(ranks),), ranks, (where,))
    boxes = {box for rank in ranks if (box := layout.box(shape, rank)).items}
    for each in shards:
        box, rank = Box(tuple(each.shard_offsets), tuple(each.shard_sizes)), each.placement.rank()
        if box.items and (len(shards) != len(boxes) or layout.box(shape, rank) != box):
            msg = (
                f"{name} {list(shape)} is a ShardedTensor whose shards are not those of"
                " torch.chunk along one dimension: save it as a DTensor, or keep it out of the"
                " checkpoint"
            )
            raise UnsupportedStateError(msg)
    return layout
