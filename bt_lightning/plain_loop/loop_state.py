"""The state of a training loop as a state dictionary to save, and back into its objects.

The model (the only module, or the one of that name) is saved where every checkpoint has its weights
(`model.safetensors`), optimizers where a checkpoint that can be resumed has them. What else has a
state, but for schedulers and scalers, is taken for a rank's own (dataloaders, samplers), and saved
for each rank.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointMismatchError, InvalidSettingError
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.random_generators import generator_states, restore_generators
from bt_lightning.session.stateful_dataloaders import (
    after_next_iterator,
    is_stateful_dataloader,
    load_state,
)
from bt_lightning.session.states_of_ranks import RANKS as PARTS
from bt_lightning.snapshot.local_shards import live_state

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_WEIGHTS, _OPTIMIZERS, _REST = "state_dict", "optimizer_states", "state"
_MODEL = "model"
NAMES, RANKS = "names", "ranks"
"""Entries of ours: which object is the model, which are optimizers; the states of each rank."""
ENTRIES = frozenset({_WEIGHTS, _OPTIMIZERS, _REST, NAMES, RANKS, EXTRA})
"""Those of a checkpoint, beside its counters."""


@dataclass(frozen=True)
class LoopState:
    """What a loop gave, sorted; `values` are those without a state of their own."""

    models: dict[str, torch.nn.Module] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    """Objects whose state every rank has: schedulers, gradient scalers."""
    own: dict[str, Any] = field(default_factory=dict)
    """Objects with a state on each rank."""
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> LoopState:
        """Sort the objects of a loop by what they are.

        Raises:
            InvalidSettingError: a name is no string, or an object has no state to save.
        """
        found = cls()
        for name, value in state.items():
            if not isinstance(name, str):
                msg = f"the state has the name {name!r}, expected strings: name what is saved"
                raise InvalidSettingError(msg)
            if isinstance(value, torch.nn.Module):
                found.models[name] = _unwrapped(value)
            elif isinstance(value, torch.optim.Optimizer):
                found.optimizers[name] = value
            elif not _is_stateful(value):
                found.values[name] = _plain(name, value)
            elif isinstance(value, (torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)):
                found.shared[name] = value
            else:
                found.own[name] = value
        return found

    @property
    def _main(self) -> str | None:
        """Name of the model whose weights are found without knowing the loop."""
        if len(self.models) == 1:
            return next(iter(self.models))
        return _MODEL if _MODEL in self.models else None

    @property
    def main_model(self) -> torch.nn.Module | None:
        """That model."""
        return None if self._main is None else self.models[self._main]

    @property
    def device(self) -> torch.device | None:
        """The CUDA device of the first model that has one."""
        tensors = (p for model in self.models.values() for p in model.parameters())
        return next((tensor.device for tensor in tensors if tensor.is_cuda), None)

    def of_this_rank(self, *, exact: bool) -> dict[str, Any]:
        """What is saved of this rank alone; with its generators, for an `exact` resume."""
        mine: dict[str, Any] = {name: value.state_dict() for name, value in self.own.items()}
        return {"own": mine, "rng": generator_states(self.device) if exact else None}

    def checkpoint(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The state dictionary, without counters; called on the rank that writes.

        Args:
            ranks: what `of_this_rank` returned on each.
        """
        one = self._main
        served = {_WEIGHTS: self.models[one].state_dict()} if one is not None else {}
        states = [optimizer.state_dict() for optimizer in self.optimizers.values()]
        return {**served, _OPTIMIZERS: states, **self._beside_main(), RANKS: ranks}

    def checkpoint_of_parts(self) -> dict[str, Any]:
        """As `checkpoint`, of a main model whose tensors lie on all ranks; called on every rank."""
        model = self.main_model
        assert model is not None  # since it is sharded
        return {**live_state(model, list(self.optimizers.values())), **self._beside_main()}

    def _beside_main(self) -> dict[str, Any]:
        """What is saved beside the main model and the optimizers."""
        rest: dict[str, Any] = dict(self.values)
        rest.update({name: value.state_dict() for name, value in self.shared.items()})
        one = self._main
        others = {name: model for name, model in self.models.items() if name != one}
        rest.update({name: model.state_dict() for name, model in others.items()})
        return {_REST: rest, NAMES: {_MODEL: one, "optimizers": list(self.optimizers)}}

    def load(self, checkpoint: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
        """Restore the objects, and return the plain values; called on every rank.

        Raises:
            CheckpointMismatchError: the checkpoint is not of such a loop, or lacks an object.
        """
        names = self._names(checkpoint)
        self.load_weights(checkpoint)
        states = dict(zip(names["optimizers"], checkpoint[_OPTIMIZERS], strict=True))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(states[name])
        return self._load_rest(checkpoint, rank, world_size)

    def saved_optimizers(self, checkpoint: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
        """Those of the loop, in the order in which the checkpoint has their states.

        Raises:
            CheckpointMismatchError: as `load`; or it has one that the loop does not name.
        """
        names = self._names(checkpoint)["optimizers"]
        if unknown := [name for name in names if name not in self.optimizers]:
            msg = f"the checkpoint has the state of {', '.join(unknown)}, which the loop lacks"
            raise CheckpointMismatchError(msg)
        return [self.optimizers[name] for name in names]

    def load_beside_main(
        self, checkpoint: Mapping[str, Any], rank: int, world_size: int
    ) -> dict[str, Any]:
        """As `load`, of a checkpoint whose main model and optimizers are restored."""
        main = self._names(checkpoint)[_MODEL]
        for name, model in self.models.items():
            if name != main:
                model.load_state_dict(checkpoint[_REST][name])
        return self._load_rest(checkpoint, rank, world_size)

    def _load_rest(
        self, checkpoint: Mapping[str, Any], rank: int, world_size: int
    ) -> dict[str, Any]:
        rest, ranks = checkpoint[_REST], _ranks(checkpoint)
        for name, value in self.shared.items():
            value.load_state_dict(rest[name])
        mine = ranks[rank % len(ranks)]
        if len(ranks) == world_size:
            self._load_own(mine)
        elif self.own:
            log.warning(
                "saved by %d ranks, resumed on %d: %s begin anew",
                len(ranks),
                world_size,
                ", ".join(self.own),
            )
        if mine["rng"] is not None:
            restore_generators(mine["rng"], self.device)
        return {name: _beside(value, rest[name]) for name, value in self.values.items()}

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the models alone.

        Raises:
            CheckpointMismatchError: their weights are others.
        """
        names, rest = checkpoint.get(NAMES, {}), checkpoint.get(_REST, {})
        main = names.get(_MODEL, self._main)  # of a checkpoint that no loop saved: of the model
        for name, model in self.models.items():
            is_main = name == main or (len(self.models) == 1 and name not in rest)
            weights = checkpoint.get(_WEIGHTS) if is_main else rest.get(name)
            try:
                model.load_state_dict(weights or {})
            except RuntimeError as error:
                msg = f"the weights of {name!r} are not those of the checkpoint: {error}"
                raise CheckpointMismatchError(msg) from error

    def _names(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        """Which object the checkpoint says is what; it has all of the loop's."""
        if not {NAMES, _REST} <= checkpoint.keys() or not _ranks(checkpoint):
            msg = (
                f"the checkpoint has {', '.join(sorted(map(str, checkpoint)))}: no Checkpointer"
                " saved it. Load it with bt_lightning.BTCheckpointIO, and take what you need"
            )
            raise CheckpointMismatchError(msg)
        names: Mapping[str, Any] = checkpoint[NAMES]
        self._check(names, checkpoint[_REST])
        return names

    def _check(self, names: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        there = {*names["optimizers"], *rest, names[_MODEL]}
        asked = {*self.models, *self.optimizers, *self.shared, *self.values}
        if missing := sorted(asked - there):
            known = ", ".join(sorted(name for name in there if name is not None))
            msg = (
                f"the checkpoint has no {', '.join(missing)}: it has {known}. Name the state as the"
                " run did that saved it, or start in a new directory"
            )
            raise CheckpointMismatchError(msg)
        if unused := sorted(name for name in there - asked if name is not None):
            log.warning("not restored, as the loop did not name it: %s", ", ".join(unused))

    def _load_own(self, mine: Mapping[str, Any]) -> None:
        states, begun = mine["own"], []
        for name, value in self.own.items():
            if name not in states:
                log.warning("the checkpoint has no state of %s, which begins anew", name)
            elif not is_stateful_dataloader(value):
                value.load_state_dict(states[name])
            elif load_state(value, states[name]):
                begun.append(value)
        if mine["rng"] is not None:
            for loader in begun:  # after the last of them, all have drawn
                again = partial(restore_generators, mine["rng"], self.device)
                after_next_iterator(loader, again)


def _ranks(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The states of each rank; each rank of a sharded save has written its own."""
    extra = checkpoint.get(EXTRA)
    parts = extra.get(PARTS) if isinstance(extra, dict) else None
    return checkpoint.get(RANKS) or parts or []


def _beside(present: Any, saved: Any) -> Any:
    """What was saved, on the device of what the loop has now."""
    both = isinstance(present, torch.Tensor) and isinstance(saved, torch.Tensor)
    return saved.to(present.device) if both else saved


def _plain(name: str, value: Any) -> Any:
    """The value, if it is one that can be saved without a state of its own."""
    if not isinstance(value, torch.utils.data.DataLoader) and not hasattr(value, "__next__"):
        return value
    kind = type(value).__name__
    msg = (
        f"{name} is a {kind}, which has no state: leave it out, or give torchdata's"
        " StatefulDataLoader, whose place is saved (in Fabric the one that you made, not what"
        " setup_dataloaders returns)"
    )
    raise InvalidSettingError(msg)


def _is_stateful(value: object) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module itself, whose weights have the same names on one process and on many."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if inner is None and isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner
