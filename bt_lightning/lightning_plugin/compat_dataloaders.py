"""Private names of Lightning, torch and torchdata for the train dataloader of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from bt_lightning.session.sample_order import NotedBatches, NotedBatchSampler

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer

_TORCH = ("torch", "torchdata")
_INDEX_BATCHES = ("batch_sampler", "sampler")


def train_loaders(trainer: Trainer) -> list[Any]:
    """The train dataloaders as Lightning iterates over them; empty before they are set up."""
    combined = trainer.fit_loop._combined_loader
    return list(combined.flattened) if combined is not None else []


def epochs_trained(trainer: Trainer) -> int:
    """The epoch that Lightning gives to `set_epoch`: the number of those that are over."""
    return int(vars(trainer.fit_loop.epoch_progress.current)["processed"])


def batches_trained(trainer: Trainer) -> int:
    """Batches of this epoch that each rank has trained."""
    return int(vars(trainer.fit_loop.epoch_loop.batch_progress.current)["processed"])


def set_batches_trained(trainer: Trainer, batches: int) -> None:
    """Count as if `batches` of this epoch were trained, as on another number of ranks.

    Called before the loops begin. How a batch that has not ended is counted stays as it is.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    change = batches - batches_trained(trainer)
    for counts in (progress.total, progress.current):
        for name in ("ready", "started", "processed", "completed"):
            vars(counts)[name] += change


def iterators_of_reload(trainer: Trainer) -> int:
    """How many iterators Lightning makes of a dataloader that it reloads, for one epoch.

    Source: `_FitLoop.setup_data`, and `_TrainingEpochLoop.on_run_start` unless it resumes.
    """
    return 1 if getattr(trainer.fit_loop, "is_resuming", False) else 2


def limit_batches_anew(trainer: Trainer) -> None:
    """Let an epoch have as many batches as its only dataloader has by now.

    Source: `_FitLoop.setup_data`, which asks it before the loader's states are restored.
    """
    combined: Any = trainer.fit_loop._combined_loader
    length, limit = len(combined.flattened[0]), trainer.limit_train_batches
    combined.limits = [min(length, limit) if isinstance(limit, int) else int(length * limit)]


def forget_loader_states(trainer: Trainer) -> None:
    """Load no state into the train dataloaders: their samplers know where they are."""
    trainer.fit_loop._combined_loader_states_to_load = []


def wrapped_sampler(sampler: Any) -> Any:
    """What `sampler` shares out, if it is Lightning's `DistributedSamplerWrapper`; else itself."""
    dataset: Any = getattr(sampler, "dataset", None)
    if type(dataset).__name__ == "_DatasetSamplerWrapper":
        return dataset._sampler
    return sampler


def begin_state(trainer: Trainer) -> torch.Tensor | None:
    """The state of the generator from which the order of this epoch was drawn.

    It is asked of the iterator that trains: the script may begin others.
    """
    combined = trainer.fit_loop._combined_loader
    iterators = getattr(getattr(combined, "_iterator", None), "iterators", None)
    batches = getattr(iterators[0], "_sampler_iter", None) if iterators else None
    if isinstance(batches, NotedBatches):
        return batches.begin
    return getattr(getattr(batches, "sampler_iter", None), "generator_state", None)


def index_batches(loader: Any) -> Any:
    """What gives `loader` the indices of each batch: its batch sampler, or a sampler of batches.

    A dataset that reads a batch at once has the second, with `batch_size=None`.
    """
    return vars(loader)[_index_batches(loader)]


def iterates_by_itself(loader: Any) -> bool:
    """Whether a subclass of torch's or torchdata's dataloader has an `__iter__` of its own."""
    method = type(loader).__iter__
    return isinstance(loader, DataLoader) and method.__module__.partition(".")[0] not in _TORCH


def set_batch_sampler(loader: Any, batch_sampler: NotedBatchSampler) -> None:
    """Let `loader` take its batches from `batch_sampler`; `restore_batch_sampler` undoes it."""
    vars(loader)[_index_batches(loader)] = batch_sampler  # torch forbids the plain way


def restore_batch_sampler(loader: Any) -> None:
    """Undo `set_batch_sampler`; idempotent."""
    for name in _INDEX_BATCHES:
        while isinstance(batches := vars(loader).get(name), NotedBatchSampler):
            vars(loader)[name] = batches.replaced


def _index_batches(loader: Any) -> str:
    return _INDEX_BATCHES[vars(loader)["batch_sampler"] is None]
