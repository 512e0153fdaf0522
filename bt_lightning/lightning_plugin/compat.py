"""Every private name of Lightning that this package touches, in one place.

Tested against the oldest and the newest supported release. A name that is missing fails with a
message that says what to do instead.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer


def before_train_iterator(trainer: Trainer, act: Callable[[], None]) -> None:
    """Run `act` once, after the train dataloader exists and before its iterator is made.

    There the state of the dataloader is loaded, and the iterator's creation is the first draw from
    the random generators that the interrupted run would have made too.
    Source: `_FitLoop.setup_data`, `_load_combined_loader_states`.
    """
    loop = trainer.fit_loop
    vars(loop).pop("_load_combined_loader_states", None)  # of a fit that failed before its use
    original = loop._load_combined_loader_states

    def load_states() -> None:
        vars(loop).pop("_load_combined_loader_states", None)
        combined = loop._combined_loader
        epoch: int = vars(loop.epoch_progress.current)["processed"]
        for loader in combined.flattened if combined is not None else ():
            set_sampler_epoch(loader, epoch)
        original()
        act()

    loop._load_combined_loader_states = load_states  # type: ignore[method-assign]


def reopen_loaders(trainer: Trainer, states: list[Any]) -> None:
    """Put torchdata's stateful dataloaders where they stood at the end of an epoch.

    Their samplers hold generators of their own, which go on from epoch to epoch. Lightning loads
    their states in the middle of an epoch only; at its end it would skip an epoch. Making and
    dropping an iterator leaves a loader as the interrupted run had it: the next one starts afresh.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    stateful = [loader for loader in loaders if hasattr(loader, "load_state_dict")]
    if len(stateful) != len(states):
        return  # other loaders than those that were saved
    for loader, state in zip(stateful, states, strict=True):
        if any(kind.__name__ == "StatefulDataLoader" for kind in type(loader).__mro__):
            loader.load_state_dict(state)
            iter(loader)
            for owner in (loader, getattr(loader, "batch_sampler", None)):
                sampler = getattr(owner, "sampler", None)
                if sampler is not None and getattr(sampler, "next_yielded", None) is not None:
                    sampler.next_yielded = None  # torchdata's distributed one: all of it was read


def iterates_at_train_start(trainer: Trainer) -> bool:
    """Whether a resumed epoch makes its iterator after `on_train_start` (before Lightning 2.6).

    Source: `_TrainingEpochLoop.on_run_start`, which asks `is_resuming` since.
    """
    return not hasattr(type(trainer.fit_loop), "is_resuming")


def set_sampler_epoch(loader: object, epoch: int) -> None:
    """Call `set_epoch` of the samplers of `loader` before its workers fork.

    Lightning does so only later, and workers started by then draw the permutation of epoch 0 in
    the first epoch after a resume. Source: Lightning issue 21938.
    """
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)


def is_tuner_run(trainer: Trainer) -> bool:
    """Whether this `fit` is a trial of `Tuner.lr_find` or `Tuner.scale_batch_size`."""
    return any(getattr(callback, "_early_exit", False) for callback in vars(trainer)["callbacks"])


def loader_states(checkpoint: dict[str, Any]) -> list[Any] | None:
    """The states of this rank's train dataloaders in a checkpoint that Lightning just dumped."""
    state = _loop_state(checkpoint)
    return state.get("combined_loader") if state is not None else None


def set_loader_states(checkpoint: dict[str, Any], states: list[Any] | None) -> None:
    """Put dataloader states in place of those in `checkpoint`; None takes them out."""
    state = _loop_state(checkpoint)
    if state is None:
        return
    state.pop("combined_loader", None)
    if states:
        state["combined_loader"] = states


def _loop_state(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found = checkpoint["loops"]["fit_loop"]["state_dict"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch that was trained last ends its epoch."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def batches_to_step(trainer: Trainer) -> int:
    """How many batches are missing until gradients that were accumulated are used; 0 for none."""
    if not trainer.fit_loop._should_accumulate():
        return 0
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return int(-ready % trainer.accumulate_grad_batches)


def validation_places(trainer: Trainer) -> int:
    """How many batches each validation of this rank has; 0 if nobody can say before its end."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    if not sets or any(isinstance(found, torch.utils.data.IterableDataset) for found in sets):
        return 0
    total = sum(trainer.num_val_batches)
    return int(total) if total < float("inf") else 0


def plain_batches(trainer: Trainer) -> int:
    """How many batches follow at least before a validation or the end of the epoch."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    left = trainer.num_training_batches - ready
    every = getattr(trainer, "val_check_batch", None)
    if every is None:
        return 0  # it comes by the clock
    if every != float("inf"):
        left = min(left, every - ready % every)
    return int(min(max(0, left - 1), 1_000_000))


def close_epoch(checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint, taken after the last batch of an epoch, one of the end of that epoch.

    Restored as it is, Lightning 2.6 leaves its epoch counters one short for the rest of the run
    and 2.4 trains the batch again; and a stateful dataloader, exhausted, skips an epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epoch["current"]["processed"] == epoch["current"]["ready"]:
        return  # at the end of the epoch already
    for part in ("total", "current"):
        epoch[part] = {**epoch[part], "processed": epoch[part]["ready"]}
    if batch["current"]["completed"] < batch["current"]["processed"]:
        for part in ("total", "current"):
            batch[part] = {**batch[part], "completed": batch[part]["processed"]}
        state = loops["epoch_loop.state_dict"]
        state["_batches_that_stepped"] = state.get("_batches_that_stepped", 0) + 1
    set_loader_states(checkpoint, None)


def takes_weights_only(load: Callable[..., Any]) -> bool:
    """Whether the `load_checkpoint` of an IO has the argument `weights_only` (Lightning 2.6)."""
    parameters = inspect.signature(load).parameters.values()
    return any(p.name == "weights_only" or p.kind is p.VAR_KEYWORD for p in parameters)


def cuda_device(trainer: Trainer) -> torch.device | None:
    """The CUDA device of this rank, if it trains on one."""
    device = trainer.strategy.root_device
    return device if device.type == "cuda" else None


def is_trial(trainer: Trainer) -> bool:
    """Whether this run keeps nothing: `fast_dev_run`, or a trial of the Tuner."""
    return bool(vars(trainer).get("fast_dev_run")) or is_tuner_run(trainer)


def logged_step(trainer: Trainer) -> int:
    """The step that Lightning itself logs with now: loggers take no step twice backwards."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def warm_dump() -> None:
    """Import what Lightning imports at the first save of a run, while nothing waits for it.

    Source: `_CheckpointConnector.dump_checkpoint`, which asks whether hyperparameters are a config.
    """
    with contextlib.suppress(ImportError):
        import omegaconf  # noqa: F401


def loaded_progress(trainer: Trainer) -> tuple[int, int, int]:
    """Of the checkpoint that was just read: epochs that were over, that were trained, and steps."""
    loaded = trainer._checkpoint_connector._loaded_checkpoint
    loop = loaded.get("loops", {}).get("fit_loop", {})
    epochs = loop.get("epoch_progress", {}).get("current", {})
    return epochs.get("completed", 0), epochs.get("processed", 0), loaded.get("global_step", 0)
