"""Fills live tensors of this rank from a checkpoint of any mesh: in place, its own bytes only.

`fill_optimizers` does so for optimizers. No function here talks to other ranks. On an error what
was to be filled holds garbage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.restore.lazy_values import with_leaves
from bt_lightning.restore.saved_tensors import SavedTensor, Wanted
from bt_lightning.restore.unloaded_value import UnloadedValue
from bt_lightning.sharding.boxes import Box, whole_box
from bt_lightning.snapshot.local_shards import (
    EXTRA_STATE,
    is_dtensor,
    is_part,
    layout_of,
    named_modules,
    stored_part,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bt_lightning.restore.opened_state import SavedState
    from bt_lightning.restore.saved_tensors import SavedTensors

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Filled:
    """What a fill did."""

    missing: tuple[str, ...] = ()
    """Names that the checkpoint lacks; their tensors are as they were."""
    unexpected: tuple[str, ...] = ()
    """Names of the checkpoint that were not asked for."""
    read_bytes: int = 0
    """Bytes that this rank read."""
    own_bytes: int = 0
    """Bytes of its own that were filled."""


def fill_tensors(
    tensors: SavedTensors,
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    strict: bool = True,
) -> Filled:
    """Fill DTensors and tensors from the saved ones of the same names. Any rank calls it.

    Another dtype is converted. Extra states, and what is no tensor here, are left to the caller.
    A tensor that is wanted by several names gets what the last of them has, as torch loads it.

    Raises:
        CheckpointMismatchError: shapes differ, or what was saved is no tensor, or this rank's part
            of a tensor is not the box that its placements give; or, if `strict`, names differ.
        CheckpointCorruptError: bytes are missing or changed.
        StoreError: the store failed.
    """
    missing = tuple(name for name in wanted if name not in saved)
    unexpected = tuple(name for name in saved if name not in wanted)
    pairs = {
        name: (saved[name], tensor)
        for name, tensor in wanted.items()
        if name in saved
        and name.rpartition(".")[2] != EXTRA_STATE
        and (isinstance(tensor, torch.Tensor) or isinstance(saved[name], SavedTensor))
    }
    _check(pairs, *((missing, unexpected) if strict else ((), ())))
    loads: dict[int, TensorLoad] = {}
    for name, (each, tensor) in pairs.items():
        if not isinstance(each, SavedTensor):
            with torch.no_grad():  # a detached sparse tensor would not share what copy_ puts there
                tensor.copy_(each)
        elif (part := _own_part(tensor, name)) is not None:
            _count_write(part[1])
            if is_dtensor(tensor) or not is_part(tensor):  # FSDP1's has no counter
                _count_write(tensor)
            loads[id(tensor)] = TensorLoad(each, *part)
    read = load_all(tensors, loads.values())
    return Filled(missing, unexpected, read, sum(load.size for load in loads.values()))


def _count_write(tensor: torch.Tensor) -> None:
    """Let its version counter move, as of a write by torch: bytes are read into the memory itself.

    A snapshot that is being taken, or an autograd graph, would take no notice of them.
    """
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _own_part(tensor: Any, name: str) -> tuple[Box, torch.Tensor] | None:
    """The box of a tensor that this rank has, and its memory; None if it has none of it."""
    target = stored_part(tensor, name).detach()
    if target.is_meta:
        msg = (
            f"{name} is on the meta device: expected memory to load into. Call"
            " module.to_empty(device=...) before"
        )
        raise CheckpointMismatchError(msg)
    layout, shape = layout_of(tensor, name), tuple(tensor.shape)
    if layout is None:
        return (whole_box(shape), target) if target.numel() else None
    rank = torch.distributed.get_rank()
    if rank not in layout.ranks:
        return None
    box = layout.box(shape, rank)
    if not target.numel() and not box.items:
        return None
    if box.sizes != tuple(target.shape):
        msg = (
            f"{name} {list(shape)} has {list(target.shape)} on rank {rank}: expected"
            f" {list(box.sizes)} by its placements on the mesh. Redistribute it evenly"
        )
        raise CheckpointMismatchError(msg)
    return box, target


def load_all(tensors: SavedTensors, loads: Iterable[TensorLoad]) -> int:
    """Carry out loads together, and return the number of bytes read. Raises as `fill_tensors`."""
    each = [load for load in loads if load.size]
    read = tensors.read([load.wanted for load in each])
    for load in each:
        load.finish()
    return read


class TensorLoad:
    """A box of a saved tensor on its way into memory: directly, or through memory of its form.

    Args:
        saved: the tensor.
        box: the part of it that is loaded, in items.
        target: memory for it, of the box's sizes, without a gradient.
    """

    def __init__(self, saved: SavedTensor, box: Box, target: torch.Tensor) -> None:
        self._target, self._packed = target, saved.packed
        self.size = target.numel() * target.element_size()
        """Bytes of the target."""
        memory = target
        if saved.packed is not None:
            box = Box((*box.offsets, 0), (*box.sizes, saved.shape[-1]))
            memory = torch.empty(box.sizes, dtype=saved.dtype, device=target.device)
        elif target.dtype != saved.dtype or not target.is_contiguous() or target.is_conj():
            memory = torch.empty(box.sizes, dtype=saved.dtype, device=target.device)
        self.wanted = Wanted(saved, box, memory)

    def finish(self) -> None:
        """Bring the bytes that were read into the target, if they are not there."""
        memory = self.wanted.memory
        if memory is self._target:
            return
        if self._packed is not None:
            memory = memory.reshape(-1).view(self._packed).reshape(self._target.shape)
        self._target.copy_(memory)


def _check(
    pairs: Mapping[str, tuple[Any, Any]],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> None:
    shapes = [
        f"{name} {list(saved.item_shape)} in the checkpoint, {list(tensor.shape)} here"
        for name, (saved, tensor) in pairs.items()
        if _can_fill(saved, tensor)
        and isinstance(saved, SavedTensor)
        and saved.item_shape != tuple(tensor.shape)
    ]
    kinds = [
        f"{name} {_kind(saved)} in the checkpoint, {_kind(tensor)} here"
        for name, (saved, tensor) in pairs.items()
        if not _can_fill(saved, tensor)
    ]
    lines = [
        f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for title, names in (
            ("another shape", shapes),
            ("of another kind", kinds),
            ("not in the checkpoint", missing),
            ("only in the checkpoint", unexpected),
        )
        if names
    ]
    if lines:
        msg = "the checkpoint does not fit the state that it is loaded into:\n  " + "\n  ".join(
            lines
        )
        raise CheckpointMismatchError(msg)


def _can_fill(saved: Any, tensor: Any) -> bool:
    """Whether a tensor takes a saved one, or a value that was decoded whole (a sparse tensor)."""
    if not isinstance(tensor, torch.Tensor):
        return False
    if isinstance(saved, SavedTensor):
        return is_part(tensor) or tensor.layout is torch.strided
    return (
        isinstance(saved, torch.Tensor)
        and not is_part(tensor)
        and (saved.layout, saved.shape) == (tensor.layout, tensor.shape)
    )


def _kind(value: Any) -> str:
    if isinstance(value, SavedTensor):
        return f"a dense tensor {list(value.item_shape)}"
    if isinstance(value, torch.Tensor):
        of = "dense" if value.layout is torch.strided else str(value.layout)
        return f"a {type(value).__name__} ({of}) {list(value.shape)}"
    return repr(value) if isinstance(value, UnloadedValue) else type(value).__name__


def fill_module(
    state: SavedState, module: Mapping[str, torch.Tensor], *, strict: bool = True
) -> Filled:
    """Fill the tensors of a module's state dictionary, by name. Raises as `fill_tensors`."""
    if state.base is not None:
        msg = (
            f"the checkpoint {state.name} has weights without their base, which only a module in"
            " one piece can complete: save with BTLightning(save_frozen=True) to load it sharded"
        )
        raise CheckpointMismatchError(msg)
    return fill_tensors(state.tensors, state.weights, module, strict=strict)


def set_extra_states(state: SavedState, module: torch.nn.Module) -> None:
    """Give modules what `get_extra_state` returned at the save; after `fill_module`, on each rank.

    Raises:
        CheckpointCorruptError, StoreError: as `fill_tensors`.
    """
    parts = named_modules(module)
    for name, value in state.weights.items():
        stem, _, last = name.rpartition(".")
        if last == EXTRA_STATE and stem in parts and _takes_extra_state(parts[stem]):
            parts[stem].set_extra_state(whole_value(state.tensors, value))


def _takes_extra_state(module: torch.nn.Module) -> bool:
    return type(module).set_extra_state is not torch.nn.Module.set_extra_state


def whole_value(tensors: SavedTensors, value: Any) -> Any:
    """A value with whole tensors on the host in place of saved ones.

    Raises:
        CheckpointCorruptError, StoreError: as `fill_tensors`.
    """
    if isinstance(value, SavedTensor):
        made = torch.empty(value.item_shape, dtype=value.item_dtype, device="cpu")
        load_all(tensors, [TensorLoad(value, whole_box(value.item_shape), made)])
        return made
    return with_leaves(value, lambda _, each: whole_value(tensors, each))
