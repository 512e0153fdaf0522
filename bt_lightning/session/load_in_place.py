"""Loads a checkpoint into a live module and its optimizers: on each rank its own bytes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.restore.fill_live import fill_module, set_extra_states
from bt_lightning.restore.fill_optimizers import fill_optimizers
from bt_lightning.restore.rank_states import rank_states
from bt_lightning.restore.saved_state import open_state
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.fsdp1_load import fill_fsdp1
from bt_lightning.session.states_of_ranks import RANKS
from bt_lightning.snapshot.local_shards import module_state, optimizer_state
from bt_lightning.snapshot.module_kinds import is_fsdp1
from bt_lightning.traces import traced_restore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class LoadInPlace:
    """One load, on one rank; every rank makes its own. Runs no collective.

    Args:
        reader: an open checkpoint, sharded or of one file.
        options: `weights_only`, `allowed` and `live_objects`, as of `load_checkpoint`.

    Raises:
        CheckpointCorruptError: bytes are missing or changed.
        UnsafeLoadError: it has values that only `weights_only=False` loads.
    """

    def __init__(self, reader: CheckpointReader, **options: Any) -> None:
        self.manifest = reader.manifest
        self._state = open_state(reader, **options)
        self.rest = dict(self._state.rest)
        """The checkpoint without weights and states of optimizers."""
        ranks = rank_states(reader, **options)
        if ranks:
            self.rest[EXTRA] = {**self.rest.get(EXTRA, {}), RANKS: ranks}

    @traced_restore(lambda load: load.manifest)
    def fill(
        self,
        module: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        strict: bool = True,
    ) -> None:
        """Fill the memory of this rank; nothing is gathered, and no optimizer takes a step.

        Args:
            module: with DTensors or plain tensors.
            optimizers: all that were saved, in their order; none to load the weights alone.
            strict: whether names of weights must match.

        Raises:
            CheckpointMismatchError: names or shapes differ.
            CheckpointCorruptError: bytes are missing or changed.
        """
        if is_fsdp1(module):
            fill_fsdp1(self._state, module, optimizers, strict=strict)
            return
        weights = module_state(module)
        fill_module(self._state, weights, strict=strict)
        set_extra_states(self._state, module)
        if optimizers:
            names = [_by_name(weights, each) for each in optimizers]
            fill_optimizers(self._state, optimizers, names)


def _by_name(
    weights: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The parameters of an optimizer by the names that saves give them."""
    named = optimizer_state(weights, optimizer)["param_groups"]
    return {
        name: parameter
        for names, group in zip(named, optimizer.param_groups, strict=True)
        for name, parameter in zip(names["params"], group["params"], strict=True)
    }
