"""One rank of a training whose ranks hold parts of the model; it may be killed at any moment.

`sharded_job.py JSON`, the job of `train`. What the test asserts on goes to the file
`<notes>-<rank>`, one JSON line each, by one write(2).
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import sys
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sharded_runs import RANK, RANKS, Net, Rows, by_name, local, strategy
from torch.utils.data import DataLoader

from bt_lightning import BTLightning
from bt_lightning.session.known_checkpoints import KnownCheckpoints


class Notes(Callback):
    """Says what this rank does, when it begins with it."""

    def __init__(self, path: str) -> None:
        self._file = os.open(f"{path}-{RANK}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **facts: object) -> None:
        workers = [child.pid for child in multiprocessing.active_children()]
        line = json.dumps({"event": event, "workers": workers, **facts}) + "\n"
        os.write(self._file, line.encode())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write("start", step=trainer.global_step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self.write("save", step=trainer.global_step)


class Counted(Net):
    """Its buffer changes in the forward pass, and says the step."""

    def __init__(self, job: dict[str, Any], notes: Notes) -> None:
        super().__init__(job)
        self.notes = notes
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.notes.write("step", step=self.global_step, samples=batch[0].tolist())
        self.steps += 1
        return super().training_step(batch, index)


def digest(trainer: L.Trainer, kind: str) -> str:
    """Of this rank's part of the weights and of what the optimizer knows."""
    found = hashlib.sha256()
    model = trainer.strategy.model if kind == "fsdp1" else trainer.lightning_module
    for name, value in by_name(model, trainer.optimizers).items():
        found.update(name.encode() + local(value).contiguous().numpy().tobytes())
    return found.hexdigest()


def train(job: dict[str, Any]) -> None:
    """One start of the training of `job`."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    L.seed_everything(job["seed"], verbose=False)
    notes = Notes(job["notes"])
    add = KnownCheckpoints.add

    def noted(known: KnownCheckpoints, manifest: Any) -> None:
        add(known, manifest)
        notes.write("committed", step=manifest.step, id=manifest.checkpoint_id)

    KnownCheckpoints.add = noted  # type: ignore[method-assign]
    keep = job["keep"]
    best = {"monitor": "step", "mode": "max"} if keep > 0 else {}
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy(job),
        devices=1,
        num_nodes=RANKS,
        max_epochs=job["epochs"],
        callbacks=[
            BTLightning(dir=job["root"], fit_name="one", **job["bt"]),
            ModelCheckpoint(
                every_n_train_steps=job["every"], save_top_k=keep, filename="{step}", **best
            ),
            notes,
        ],
        default_root_dir=job["root"],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(3)
    module = Counted(job, notes)
    loader = DataLoader(Rows(job["rows"]), batch_size=job["batch"], shuffle=True)
    trainer.fit(module, loader)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    notes.write("end", step=trainer.global_step, lr=rate, digest=digest(trainer, job["kind"]))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
