"""Gives optimizers of this rank their states from a checkpoint of any mesh; none takes a step.

No function here talks to other ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.restore.fill_live import Filled, fill_tensors
from bt_lightning.restore.lazy_values import with_leaves
from bt_lightning.restore.optimizer_states import is_optimizer_state, parameters
from bt_lightning.restore.saved_tensors import SavedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.restore.opened_state import SavedState

_SHOWN: Final = 8


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
        unnamed = source["state"].keys() - set(parameters(source))
        if unnamed:
            names_of = sorted(map(str, unnamed))[:_SHOWN]
            msg = f"{where} has states of {names_of}, parameters that none of its groups names"
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
        return with_leaves(
            value, lambda key, each: self._new(f"{name}.{key}", each, parameter, host=host)
        )

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
