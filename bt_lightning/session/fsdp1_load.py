"""Loads a checkpoint into an FSDP1 module: each rank reads its parts, and torch puts them in place.

Every rank calls it at the same moment: torch gathers each unit, as in its own loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.restore.fill_live import fill_module, set_extra_states
from bt_lightning.restore.fill_optimizers import fill_optimizers
from bt_lightning.snapshot.fsdp1_shards import (
    fsdp1_names,
    set_fsdp1_module_state,
    set_fsdp1_optimizer_state,
)
from bt_lightning.snapshot.local_shards import module_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from bt_lightning.restore.opened_state import SavedState


class _StandIn:
    """An optimizer for `fill_optimizers`, whose parameters are the sharded tensors of weights."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[int, str],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        self._names: dict[int, str] = {}
        self.state: dict[torch.Tensor, Any] = {}
        self.param_groups = []
        for group in optimizer.param_groups:
            tensors = []
            for parameter in group["params"]:
                name = names.get(id(parameter), "")
                if name not in weights:
                    msg = (
                        f"an optimizer ({type(optimizer).__name__}) trains what is no parameter of"
                        " the FSDP module by its own name: expected use_orig_params=True"
                    )
                    raise UnsupportedStateError(msg)
                self._names[id(weights[name])] = name
                tensors.append(weights[name])
            self.param_groups.append({**group, "params": tensors})

    def by_name(self) -> dict[str, Any]:
        """Its state, with names in place of the tensors."""
        groups = [
            {**group, "params": [self._names[id(each)] for each in group["params"]]}
            for group in self.param_groups
        ]
        state = {self._names[id(each)]: entry for each, entry in self.state.items()}
        return {"state": state, "param_groups": groups}


def fill_fsdp1(
    state: SavedState,
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    strict: bool,
) -> None:
    """Fill the weights and the states of optimizers; none takes a step. Raises as `fill_module`."""
    weights = module_state(module)
    fill_module(state, weights, strict=strict)
    set_fsdp1_module_state(module, weights)
    set_extra_states(state, module)
    if not optimizers:
        return
    names = fsdp1_names(module)
    stand_ins: list[Any] = [_StandIn(optimizer, names, weights) for optimizer in optimizers]
    fill_optimizers(state, stand_ins, [weights] * len(optimizers))
    for optimizer, stand_in in zip(optimizers, stand_ins, strict=True):
        set_fsdp1_optimizer_state(module, optimizer, stand_in.by_name())
