"""Private names of Lightning that this package uses; further ones are in `compat_*.py`.

They are tested with the oldest and the newest supported release. A missing name raises an error
that says what to do instead.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.lightning_plugin.compat_dataloaders import train_loaders
from bt_lightning.session.stateful_dataloaders import begin_after_epoch, is_stateful_dataloader

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer


def before_train_iterator(trainer: Trainer, act: Callable[[], None], *, anew: bool) -> None:
    """Run `act` when the train dataloader exists and before its iterator is made.

    That is once in a fit, and again at each reload. Afterwards, and not if `act` forbids it, the
    state of the dataloader is loaded. Creating the iterator is the first draw from the random
    generators, as it would have been in the interrupted run. A dataloader that is there already is
    made `anew`, for a resume; else `act` runs at once, behind its iterator.
    Source: `_FitLoop.setup_data`, `_load_combined_loader_states`.
    """
    loop = trainer.fit_loop
    vars(loop).pop("_load_combined_loader_states", None)  # of an earlier fit
    if anew:
        forget_loader(loop)
    original = loop._load_combined_loader_states

    def load_states() -> None:
        act()
        combined = loop._combined_loader
        epoch: int = vars(loop.epoch_progress.current)["processed"]
        for loader in combined.flattened if combined is not None else ():
            set_sampler_epoch(loader, epoch)
        original()

    loop._load_combined_loader_states = load_states  # type: ignore[method-assign]
    if loop._combined_loader is not None:
        act()


def forget_loader(loop: Any) -> None:
    """Drop a dataloader and its iterator that were made before the restore, to make them anew.

    `trainer.estimated_stepping_batches` in `configure_optimizers` makes them.
    """
    if loop._combined_loader is None:
        return
    if loop._data_fetcher is not None:
        loop._data_fetcher.teardown()
    loop._combined_loader = loop._data_fetcher = None


def reopen_loaders(trainer: Trainer, states: list[Any]) -> None:
    """Restore torchdata's stateful dataloaders to their states at the end of an epoch.

    Lightning restores their states only within an epoch; at its end it would skip an epoch.
    """
    stateful = [loader for loader in train_loaders(trainer) if hasattr(loader, "load_state_dict")]
    if len(stateful) != len(states):
        return  # not the loaders that were saved
    for loader, state in zip(stateful, states, strict=True):
        if is_stateful_dataloader(loader):
            begin_after_epoch(loader, state)


def iterates_at_train_start(trainer: Trainer) -> bool:
    """Whether a resumed epoch creates its iterator after `on_train_start` (before Lightning 2.6).

    Source: `_TrainingEpochLoop.on_run_start`, which checks `is_resuming` from 2.6 on.
    """
    return not hasattr(type(trainer.fit_loop), "is_resuming")


def set_sampler_epoch(loader: object, epoch: int) -> None:
    """Call `set_epoch` of the samplers of `loader` before its workers are started.

    Lightning calls it later; workers that run by then use the permutation of epoch 0 in the first
    epoch after a resume. Source: Lightning issue 21938.
    """
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)


def train_data_source(trainer: Trainer) -> Any:
    """What gives the training data: loaders, or the module or datamodule whose hook makes them."""
    source = getattr(trainer.fit_loop, "_data_source", None)
    return getattr(source, "instance", None)


def is_tuner_run(trainer: Trainer) -> bool:
    """Whether this `fit` is a trial of `Tuner.lr_find` or `Tuner.scale_batch_size`."""
    return any(getattr(callback, "_early_exit", False) for callback in vars(trainer)["callbacks"])


def loader_states(checkpoint: dict[str, Any]) -> list[Any] | None:
    """The states of this rank's train dataloaders in a checkpoint dictionary of Lightning."""
    state = _loop_state(checkpoint)
    return state.get("combined_loader") if state is not None else None


def set_loader_states(checkpoint: dict[str, Any], states: list[Any] | None) -> None:
    """Replace the dataloader states in `checkpoint`; None removes them."""
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
    """Whether the last trained batch ends its epoch."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the fit ends with the epoch that ends; asked behind the hooks of its end.

    Source: `_FitLoop.done`, which logs what it finds.
    """
    loop: Any = trainer.fit_loop
    steps, epochs = trainer.max_steps, trainer.max_epochs
    if steps != -1 and trainer.global_step >= steps:
        return True
    if epochs not in (None, -1) and loop.epoch_progress.current.processed >= epochs:
        return True
    return bool(trainer.should_stop and loop._can_stop_early)


def is_behind_batch(trainer: Trainer) -> bool:
    """Whether the hooks of a batch's end are running."""
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batch.completed < batch.processed)


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def batches_to_step(trainer: Trainer) -> int:
    """Number of batches until accumulated gradients are applied; 0 if none are pending."""
    if not trainer.fit_loop._should_accumulate():
        return 0
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return int(-ready % trainer.accumulate_grad_batches)


def validation_batches(trainer: Trainer) -> int:
    """Number of batches of a validation on this rank; 0 if it is not known before its end."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    if not sets or any(isinstance(found, torch.utils.data.IterableDataset) for found in sets):
        return 0
    total = sum(trainer.num_val_batches)
    return int(total) if total < float("inf") else 0


def batches_without_boundary(trainer: Trainer) -> int:
    """Minimum number of batches before the next validation or the end of the epoch."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    left = trainer.num_training_batches - ready
    every = getattr(trainer, "val_check_batch", None)
    if every is None:
        return 0  # validation by time
    if every != float("inf"):
        left = min(left, every - ready % every)
    return int(min(max(0, left - 1), 1_000_000))


def close_epoch(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint that was taken after an epoch's last batch to the end of that epoch.

    Without this, a resumed Lightning 2.6 counts one epoch too few for the rest of the run, 2.4
    trains the batch again, and an exhausted stateful dataloader skips an epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epoch["current"]["processed"] == epoch["current"]["ready"]:
        return  # at the end of the epoch already
    if (
        epoch["current"]["started"] < epoch["current"]["ready"]
    ):  # in the next `on_train_epoch_start`
        for part in ("total", "current"):
            epoch[part] = {**epoch[part], "ready": epoch[part]["started"]}
        set_loader_states(checkpoint, None)
        return
    for part in ("total", "current"):
        epoch[part] = {**epoch[part], "processed": epoch[part]["ready"]}
    if batch["current"]["completed"] < batch["current"]["processed"]:
        for part in ("total", "current"):
            batch[part] = {**batch[part], "completed": batch[part]["processed"]}
        state = loops["epoch_loop.state_dict"]
        state["_batches_that_stepped"] = state.get("_batches_that_stepped", 0) + 1
    set_loader_states(checkpoint, None)


def takes_weights_only(load: Callable[..., Any]) -> bool:
    """Whether `load` has the argument `weights_only` (Lightning 2.6)."""
    parameters = inspect.signature(load).parameters.values()
    return any(p.name == "weights_only" or p.kind is p.VAR_KEYWORD for p in parameters)


def cuda_device(trainer: Trainer) -> torch.device | None:
    """The CUDA device of this rank, if it trains on one."""
    device = trainer.strategy.root_device
    return device if device.type == "cuda" else None


def is_trial(trainer: Trainer) -> bool:
    """Whether this run's checkpoints are not kept: `fast_dev_run`, or a trial of the Tuner."""
    return bool(vars(trainer).get("fast_dev_run")) or is_tuner_run(trainer)


def logged_step(trainer: Trainer) -> int:
    """The step with which Lightning logs at this moment: loggers reject smaller ones."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def preload_save_imports() -> None:
    """Import in advance what Lightning imports at the first save of a run.

    Source: `_CheckpointConnector.dump_checkpoint`, which checks hyperparameters for OmegaConf.
    """
    with contextlib.suppress(ImportError):
        import omegaconf  # noqa: F401


def loaded_hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """The hyperparameters of the module in the checkpoint that Lightning has just read."""
    loaded = trainer._checkpoint_connector._loaded_checkpoint
    found = loaded.get("hyper_parameters")
    return dict(found) if isinstance(found, Mapping) else {}


def loaded_progress(trainer: Trainer) -> tuple[int, int, int]:
    """(completed epochs, trained epochs, steps) of the checkpoint that Lightning has just read."""
    loaded = trainer._checkpoint_connector._loaded_checkpoint
    loop = loaded.get("loops", {}).get("fit_loop", {})
    epochs = loop.get("epoch_progress", {}).get("current", {})
    return epochs.get("completed", 0), epochs.get("processed", 0), loaded.get("global_step", 0)
