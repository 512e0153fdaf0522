"""Fills live tensors of this rank from a checkpoint of any mesh: in place, its own bytes only.

No function here talks to other ranks. On an error what was to be filled holds garbage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.restore.optimizer_states import is_optimizer_state, parameters
from bt_lightning.restore.saved_tensors import SavedTensor, Wanted
from bt_lightning.sharding.boxes import Box, whole_box
from bt_lightning.snapshot.local_shards import EXTRA_STATE, layout_of, named_modules, stored_part

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
    wanted: Mapping[str, torch.Tensor],
    *,
    strict: bool = True,
) -> Filled:
    """Fill DTensors and tensors from the saved ones of the same names. Any rank calls it.

    Another dtype is converted. Values that are no tensors are left to the caller.

    Raises:
        CheckpointMismatchError: shapes differ; or, if `strict`, the names do.
        CheckpointCorruptError: bytes are missing or changed.
        StoreError: the store failed.
    """
    missing = tuple(name for name in wanted if name not in saved)
    unexpected = tuple(name for name in saved if name not in wanted)
    pairs = {
        name: (saved[name], tensor)
        for name, tensor in wanted.items()
        if isinstance(saved.get(name), SavedTensor) and not name.endswith(EXTRA_STATE)
    }
    _check(pairs, *((missing, unexpected) if strict else ((), ())))
    loads = []
    for name, (each, tensor) in pairs.items():
        target = stored_part(tensor, name).detach()
        if target.numel():
            loads.append(TensorLoad(each, _box(tensor, name), target))
    read = load_all(tensors, loads)
    return Filled(missing, unexpected, read, sum(load.size for load in loads))


def _box(tensor: Any, name: str) -> Box:
    """The box of a tensor that this rank has."""
    layout, shape = layout_of(tensor, name), tuple(tensor.shape)
    return whole_box(shape) if layout is None else layout.box(shape, torch.distributed.get_rank())


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
    pairs: Mapping[str, tuple[SavedTensor, torch.Tensor]],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> None:
    shapes = [
        f"{name} {list(saved.item_shape)} in the checkpoint, {list(tensor.shape)} here"
        for name, (saved, tensor) in pairs.items()
        if saved.item_shape != tuple(tensor.shape)
    ]
    lines = [
        f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for title, names in (
            ("another shape", shapes),
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
        if last == EXTRA_STATE and stem in parts:
            parts[stem].set_extra_state(_read_whole(state.tensors, value))


def _read_whole(tensors: SavedTensors, value: Any) -> Any:
    """A value with whole tensors on the host in place of saved ones."""
    if isinstance(value, SavedTensor):
        made = torch.empty(value.item_shape, dtype=value.item_dtype, device="cpu")
        load_all(tensors, [TensorLoad(value, whole_box(value.item_shape), made)])
        return made
    if isinstance(value, dict):
        return {key: _read_whole(tensors, each) for key, each in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_read_whole(tensors, each) for each in value)
    return value


def fill_optimizers(
    state: SavedState,
    optimizers: Sequence[torch.optim.Optimizer],
    names: Sequence[Mapping[str, torch.Tensor]],
) -> Filled:
    """Give optimizers their saved states and hyperparameters; none of them takes a step.

    Args:
        state: of the checkpoint.
        optimizers: in the order in which they were saved.
        names: for each, name -> parameter, as saves name them.

    Raises:
        CheckpointMismatchError: other optimizers, groups, parameters or shapes were saved.
        CheckpointCorruptError, StoreError: as `fill_tensors`.
    """
    if len(state.optimizers) != len(optimizers):
        msg = (
            f"the checkpoint {state.name} has the states of {len(state.optimizers)} optimizers,"
            f" and there are {len(optimizers)}"
        )
        raise CheckpointMismatchError(msg)
    saved: dict[str, Any] = {}
    wanted: dict[str, torch.Tensor] = {}
    made = []
    for number, (optimizer, given) in enumerate(zip(optimizers, names, strict=True)):
        fresh = _Fresh(state, number, optimizer, given)
        saved |= fresh.saved
        wanted |= fresh.wanted
        made.append(fresh)
    filled = fill_tensors(state.tensors, saved, wanted)
    for fresh in made:
        fresh.install()
    return filled


class _Fresh:
    """The new state of one optimizer, not filled."""

    def __init__(
        self,
        state: SavedState,
        number: int,
        optimizer: torch.optim.Optimizer,
        names: Mapping[str, torch.Tensor],
    ) -> None:
        source = state.optimizers[number]
        where = f"optimizer {number} of {state.name}"
        if not is_optimizer_state(source):
            msg = f"{where} has no groups and states of parameters: its state is of another kind"
            raise CheckpointMismatchError(msg)
        self._optimizer, self._where = optimizer, f"optimizer_{number}"
        self.saved: dict[str, Any] = {}
        self.wanted: dict[str, torch.Tensor] = {}
        self._groups = [
            self._new(f"param_groups.{index}", group)
            for index, group in enumerate(source["param_groups"])
        ]
        on_device = {
            key
            for group in self._groups
            if group.get("capturable") or group.get("fused")
            for key in group["params"]
        }
        self._states: dict[torch.Tensor, Any] = {}
        for key, parameter in _matched(source, optimizer, names, where):
            for name, value in source["state"].get(key, {}).items():
                host = name == "step" and key not in on_device  # as torch's optimizers have it
                new = self._new(f"state.{key}.{name}", value, parameter, host=host)
                self._states.setdefault(parameter, {})[name] = new

    def _new(
        self, name: str, value: Any, parameter: torch.Tensor | None = None, *, host: bool = True
    ) -> Any:
        """A value with new memory for each of its tensors, which are noted as wanted."""
        if isinstance(value, SavedTensor):
            full = f"{self._where}.{name}"
            self.saved[full], self.wanted[full] = value, _memory(value, parameter, host=host)
            return self.wanted[full]
        if isinstance(value, dict):
            return {k: self._new(f"{name}.{k}", v, parameter, host=host) for k, v in value.items()}
        if isinstance(value, list | tuple) and any(isinstance(x, SavedTensor) for x in value):
            parts = [self._new(f"{name}.{k}", v, parameter, host=host) for k, v in enumerate(value)]
            return type(value)(parts)
        return value

    def install(self) -> None:
        """Put the filled state in place."""
        self._optimizer.state.clear()
        self._optimizer.state.update(self._states)
        for group, saved in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})


def _matched(
    source: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, torch.Tensor],
    where: str,
) -> list[tuple[Any, torch.Tensor]]:
    """Saved name or number, and the parameter that has it."""
    live = [list(group["params"]) for group in optimizer.param_groups]
    saved = [list(group["params"]) for group in source["param_groups"]]
    if len(live) != len(saved):
        msg = f"{where} has {len(saved)} groups of parameters, and there are {len(live)} here"
        raise CheckpointMismatchError(msg)
    if not all(isinstance(key, str) for key in parameters(source)):
        counts = [len(each) for each in saved], [len(each) for each in live]
        if counts[0] != counts[1]:
            msg = f"the groups of {where} have {counts[0]} parameters, and {counts[1]} here"
            raise CheckpointMismatchError(msg)
        pairs = zip(saved, live, strict=True)
        return [pair for each in pairs for pair in zip(*each, strict=True)]
    by_id = {id(parameter): name for name, parameter in names.items()}
    found = []
    for number, (keys, each) in enumerate(zip(saved, live, strict=True)):
        here = {by_id.get(id(parameter), ""): parameter for parameter in each}
        if here.keys() != set(keys):
            lacks = sorted(here.keys() - set(keys)), sorted(set(keys) - here.keys())
            msg = (
                f"group {number} of {where} has other parameters: it lacks {lacks[0][:_SHOWN]}, and"
                f" has {lacks[1][:_SHOWN]} besides"
            )
            raise CheckpointMismatchError(msg)
        found += [(key, here[key]) for key in keys]
    return found


def _memory(saved: SavedTensor, parameter: torch.Tensor | None, *, host: bool) -> torch.Tensor:
    """New memory; beside a parameter, and sharded as it is if of its shape, unless on the host."""
    dtype, shape = saved.item_dtype, saved.item_shape
    if parameter is None or host:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device=parameter.device)
