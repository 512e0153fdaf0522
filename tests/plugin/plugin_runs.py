"""Small trainings that use everything a resume can get wrong; scripts of the tests import it too.

Dropout, BatchNorm, three random generators in the step, AdamW, a scheduler per epoch, shuffling.
"""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from bt_lightning import BTCheckpointIO, BTLightning
from bt_lightning.session.fit_selection import process_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

torch.set_num_threads(1)
BATCHES = 8
"""Batches of one epoch."""


class StoppedError(Exception):
    """What a test ends a training with."""


def stop() -> None:
    raise StoppedError


def kill_group() -> None:
    """End this process, its ranks and its workers at once, as a lost machine does."""
    for child in multiprocessing.active_children():  # the worker has a group of its own
        child.kill()
    os.killpg(0, signal.SIGKILL)


class Numbers(Dataset):
    """32 rows; with `noise`, drawn anew at each read, in the loader's worker if it has one."""

    def __init__(self, *, noise: bool = False, length: int = 4 * BATCHES) -> None:
        self.noise, self.length = noise, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        row = torch.full((8,), index / self.length)
        return row + 0.1 * torch.randn(8) if self.noise else row


class Net(L.LightningModule):
    """Ends itself by `end` when `stop_at` optimizer steps are done; notes the steps it began."""

    def __init__(
        self, stop_at: int | None = None, end: Callable[[], None] = stop, width: int = 16
    ) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(width, 1),
        )
        self._stop_at, self.end = stop_at, end
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.lr = 1e-2

    def note(self, index: int) -> None:
        """Begin a step, or end the run."""
        if self._stop_at is not None and self.trainer.global_step >= self._stop_at:
            self.end()
        self.steps.append(self.trainer.global_step)
        self.batches.append(index)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.note(index)
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(())  # noqa: NPY002
        return (self.net(batch) - 1).pow(2).mean() + 1e-3 * noise * self.net(batch).mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val", self.net(batch).mean())

    test_step = validation_step

    def predict_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"},
        }


class TwoOptimizers(Net):
    """Manual optimization: two optimizers step in each batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        self.note(index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self) -> Any:
        one = torch.optim.AdamW(self.net[0].parameters(), lr=1e-2)
        other = torch.optim.SGD(self.net[3].parameters(), lr=1e-2, momentum=0.9)
        return [one, other], [
            torch.optim.lr_scheduler.StepLR(one, 1, 0.9),
            torch.optim.lr_scheduler.StepLR(other, 1, 0.8),
        ]


class SaveAtLastBatch(Callback):
    """User code that saves when the last batch of an epoch is done, before the epoch's end."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_last_batch:
            trainer.save_checkpoint(self.root / f"mine-{trainer.global_step}")


class Wanted(Callback):
    """Notes weights and optimizer states at each save, before anything else can happen to them."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Any]] = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        state = {"state_dict": checkpoint["state_dict"], "optimizer_states": optimizers}
        self.states[trainer.global_step] = copy.deepcopy(state)

    def check(self, root: Path) -> None:
        """Every checkpoint holds what its save saw, bit by bit."""
        assert self.states
        for step, state in self.states.items():
            path = next(root.glob(f"*-{step}"))  # of a `ModelCheckpoint`, or of the fit's end
            found = BTCheckpointIO().load_checkpoint(path)
            for part, wanted in state.items():
                assert digest(found[part]) == digest(wanted), f"{part} of step {step}"


def digest(*values: Any) -> str:
    """Of tensors bit by bit, wherever they lie in `values`."""
    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            state.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                state.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            state.update(repr(value).encode())

    add(values)
    return state.hexdigest()[:12]


def outcome(trainer: L.Trainer) -> dict[str, Any]:
    """Where a run ended, part by part, so that a difference says what differs."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    found = {
        "weights": digest(trainer.lightning_module.state_dict()),
        "optimizers": digest([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": digest([scheduler.state_dict() for scheduler in schedulers]),
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
    }
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        found["scaler"] = digest(scaler.state_dict())
    for callback in trainer.early_stopping_callbacks:
        found["early stopping"] = digest(callback.state_dict())
    return found


@dataclass
class Run:
    """One `fit`, ended by itself or by its module."""

    trainer: L.Trainer
    module: Net
    stopped: bool = False
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def first_step(self) -> int:
        """Where it began."""
        return self.module.steps[0]


QUIET: dict[str, Any] = {
    "max_epochs": 3,
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def trainer(root: Path | str, *callbacks: Any, **options: Any) -> L.Trainer:
    """A quiet Trainer on the CPU that writes nothing outside of `root`.

    It stands for that of a process of its own, which has fitted nothing before.
    """
    process_fits.clear()
    return L.Trainer(
        **{**QUIET, "default_root_dir": str(root), "callbacks": list(callbacks), **options}
    )


def loader(*, stateful: bool = False, workers: int = 0, noise: bool = False) -> DataLoader:
    """Four rows a batch, shuffled."""
    kind: Any = DataLoader
    if stateful:
        from torchdata.stateful_dataloader import StatefulDataLoader

        kind = StatefulDataLoader
    return kind(Numbers(noise=noise), batch_size=4, shuffle=True, num_workers=workers)


def validation() -> DataLoader:
    """Two batches."""
    return DataLoader(Numbers(length=16), batch_size=8)


def fit(
    root: Path | str,
    *more: Any,
    seed: int = 1,
    make: Callable[[], Any] = Net,
    save: dict[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    loader_options: dict[str, Any] | None = None,
    ckpt_path: Any = None,
    bt: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train under `root` until the end or `StoppedError`; every step saved unless `save` says."""
    L.seed_everything(seed)
    if callbacks is None:
        wanted = {"every_n_train_steps": 1, "save_top_k": -1} if save is None else save
        callbacks = [BTLightning(dir=root, **(bt or {})), ModelCheckpoint(**wanted)]
    made = trainer(root, *callbacks, *more, **options)
    run = Run(made, make())  # after the seed: so equal runs begin equal
    try:
        made.fit(run.module, loader(**(loader_options or {})), validation(), ckpt_path=ckpt_path)
    except StoppedError:
        run.stopped = True
    else:
        run.outcome = outcome(made)
    return run
