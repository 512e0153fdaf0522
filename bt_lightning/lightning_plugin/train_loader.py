"""What a train dataloader reads: how many samples, in which order, shared out among which ranks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from bt_lightning.lightning_plugin.compat_dataloaders import (
    index_batches,
    iterates_by_itself,
    wrapped_sampler,
)
from bt_lightning.session.sample_order import DrawnOrder, SeededOrder
from bt_lightning.session.sample_position import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.session.sample_order import Order

_TORCHDATA = "torchdata.stateful_dataloader.sampler"
_TORCHDATA_RANDOM = f"{_TORCHDATA}.RandomSampler"
_TORCH_RANDOM = "torch.utils.data.sampler.RandomSampler"
_BATCH_SAMPLERS = ("torch.utils.data.sampler.BatchSampler", f"{_TORCHDATA}.BatchSampler")
_DISTRIBUTED = (
    "torch.utils.data.distributed.DistributedSampler",
    f"{_TORCHDATA}.StatefulDistributedSampler",
)
_DRAWING = (
    _TORCHDATA_RANDOM,
    _TORCH_RANDOM,
    "torch.utils.data.sampler.SubsetRandomSampler",
    "torch.utils.data.sampler.WeightedRandomSampler",
)
"""Samplers that draw their order when an iteration begins."""


@dataclass(frozen=True, slots=True)
class TrainLoader:
    """A dataloader whose order can be continued by any number of ranks."""

    loader: Any
    batching: Batching
    samples: int
    length: int
    """Samples of an epoch on all ranks, with those that fill the ranks up."""
    seed: int | None
    """Of the `DistributedSampler` that shuffles, if one does; it may shuffle what is drawn."""
    drawn_by: Any
    """The sampler that draws the order, if one does."""
    eager: bool
    """Whether the order is drawn when an iterator of the batch sampler is made."""
    native: bool
    """Whether the dataloader's own state restores its place, on the same number of ranks."""
    own_iteration: bool = False
    """Whether a subclass iterates by a method of its own, which may not ask the batch sampler."""

    @property
    def order(self) -> dict[str, Any]:
        """What tells this order from another one."""
        own = getattr(self.drawn_by, "generator", None) is not None
        return {
            "samples": self.samples,
            "length": self.length,
            "seed": self.seed,
            "drawn_by": None if self.drawn_by is None else _kind(self.drawn_by),
            "own_generator": own,
        }

    @property
    def draws(self) -> dict[str, Any]:
        """How iterations of the dataloader draw, as `DrawnOrder` takes it."""
        workers = self.loader.num_workers > 0
        full = self.samples % self.batching.batch_size == 0 or self.batching.drop_last
        return {
            "exhausts": workers or self.batching.ranks > 1 or not full,
            # its iterator with workers begins an iteration over its batch sampler twice
            "discards": int(self.eager and workers),
        }

    def draws_before(self, generator: torch.Generator) -> int:
        """How often an iterator of the dataloader draws from `generator` before its sampler."""
        return int(generator is (self.loader.generator or torch.default_generator))


def describe_loader(loaders: list[Any], world_size: int) -> TrainLoader | str:
    """The train dataloader, or why its order cannot be known."""
    if len(loaders) != 1:
        return f"there are {len(loaders)} train dataloaders"
    loader = loaders[0]
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "the train dataloader reads no map-style dataset"
    batches = index_batches(loader)
    if _name(batches) not in _BATCH_SAMPLERS:
        return f"batches are made by {_name(batches)}"
    return _describe(loader, batches, world_size)


def _describe(loader: Any, batches: Any, world_size: int) -> TrainLoader | str:
    sampler = batches.sampler
    distributed = sampler if isinstance(sampler, DistributedSampler) else None
    replicas = 1 if distributed is None else distributed.num_replicas
    if distributed is not None and loader.batch_sampler is None:
        return "Lightning does not tell its DistributedSampler the epoch"
    if replicas != world_size:
        return f"its sampler is for {replicas} ranks, not for {world_size}"
    inner = wrapped_sampler(sampler)
    drawn = _name(inner) in _DRAWING
    if not drawn and _name(inner) not in _DISTRIBUTED and type(inner) is not SequentialSampler:
        return f"the order is made by {_name(inner)}"
    batching = Batching(replicas, batches.batch_size, batches.drop_last)
    total = len(inner) if distributed is None else distributed.total_size
    by_torchdata = any(kind.__module__.startswith("torchdata.") for kind in type(loader).__mro__)
    own_state = not drawn or (inner is sampler and _name(inner) == _TORCHDATA_RANDOM)
    eager = drawn and by_torchdata and (own_state or inner is not sampler)
    if eager and getattr(inner, "generator", None) is loader.generator:
        return "the dataloader and its sampler draw from one generator"
    return TrainLoader(
        loader,
        batching,
        samples=len(inner if drawn or distributed is None else distributed.dataset),  # type: ignore[arg-type]
        length=batching.epoch_length(total),
        seed=distributed.seed if distributed is not None and distributed.shuffle else None,
        drawn_by=inner if drawn else None,
        eager=eager,
        native=hasattr(loader, "load_state_dict") and (own_state or not by_torchdata),
        own_iteration=iterates_by_itself(loader),
    )


def make_order(
    found: TrainLoader,
    saved: Mapping[str, Any],
    agree: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Order | str:
    """The order that a checkpoint tells of, for this run's dataloader; or why there is none."""
    seeded = SeededOrder(saved["samples"], saved["seed"])
    if saved["drawn_by"] is None:
        return seeded
    sampler = _drawing_sampler(found, saved)
    if isinstance(sampler, str):
        return sampler
    shuffle = None if saved["seed"] is None else seeded
    draws = {name: saved[name] for name in found.draws}
    order = DrawnOrder(sampler, shuffle=shuffle, agree=agree, **draws)
    order.draws = found.draws_before(order.generator)
    return order


def _drawing_sampler(found: TrainLoader, saved: Mapping[str, Any]) -> Any:
    name, own = saved["drawn_by"], saved["own_generator"]
    if found.order["drawn_by"] == name and found.order["own_generator"] == own:
        return found.drawn_by
    if name not in {_TORCH_RANDOM, _TORCHDATA_RANDOM} or saved["samples"] != len(
        found.loader.dataset
    ):
        return f"it was drawn by {name}, which is not there"
    generator = (found.loader.generator or torch.Generator()) if own else None
    if name == _TORCH_RANDOM:
        return RandomSampler(found.loader.dataset, generator=generator)
    try:
        kind = importlib.import_module(_TORCHDATA).RandomSampler
    except ImportError:
        return f"it was drawn by {name}, which is not installed"
    return kind(found.loader.dataset, generator=generator)


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _kind(sampler: Any) -> str:
    """The sampler's name, and what it draws if that is no permutation."""
    return _name(sampler) + ("(replacement=True)" if getattr(sampler, "replacement", False) else "")
