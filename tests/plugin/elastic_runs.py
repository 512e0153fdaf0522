"""Runs jobs as one rank of several, and writes down which samples each step trains.

A script of the tests: `elastic_runs.py JOBS`, a JSON file. Each job is one `fit`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from bt_lightning import BTLightning

torch.set_num_threads(1)
RANK, RANKS = int(os.environ.get("NODE_RANK", "0")), int(os.environ.get("RANKS", "1"))


class Rows(Dataset):
    """Each sample knows its index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.sin(torch.arange(4.0) * (index + 1))


class Noting(L.LightningModule):
    """Linear regression without noise."""

    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.noise = noise
        self.net = torch.nn.Linear(4, 1)
        self.drop = torch.nn.Dropout(0.3 if noise else 0.0)
        self.trained: list[tuple[int, int, list[int]]] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self) -> None:
        if self.noise and RANK == 0:  # a user's own look at the data, on one rank
            next(iter(self.trainer.train_dataloader))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        indices, rows = batch
        self.trained.append((self.trainer.global_step, self.current_epoch, indices.tolist()))
        target = rows.sum(1, keepdim=True)
        return ((self.net(self.drop(rows)) - target) ** 2).mean()

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val", self.net(batch[1]).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def loader(job: dict[str, Any]) -> DataLoader:
    rows, kind = Rows(job["samples"]), job["kind"]
    more: dict[str, Any] = {
        "batch_size": job["batch"],
        "num_workers": job["workers"],
        "drop_last": job["drop_last"],
    }
    if kind == "own_generator":
        generator = torch.Generator()
        generator.manual_seed(job["seed"])
        return DataLoader(rows, shuffle=True, generator=generator, **more)
    if kind == "weighted":
        weights = torch.arange(1.0, len(rows) + 1)
        return DataLoader(rows, sampler=WeightedRandomSampler(weights, len(rows)), **more)
    if kind == "random_in_stateful":
        return StatefulDataLoader(rows, sampler=RandomSampler(rows), **more)
    if kind == "custom":
        drop_last = more.pop("drop_last")
        batches = Batches(RandomSampler(rows), more.pop("batch_size"), drop_last)
        return DataLoader(rows, batch_sampler=batches, **more)
    shuffle = "shuffled" in kind
    made: Any = StatefulDataLoader if "stateful" in kind else DataLoader
    if "sampler" in kind:
        of: Any = StatefulDistributedSampler if "stateful" in kind else DistributedSampler
        sampler = of(rows, RANKS, RANK, shuffle=shuffle, seed=5, drop_last=job["drop_last"])
        return made(rows, sampler=sampler, **more)
    return made(rows, shuffle=shuffle, **more)


class Batches(BatchSampler):
    """A class of the user's own, of which nobody knows what it does."""


def fit(job: dict[str, Any], make: Any = Noting) -> None:
    out, root = Path(job["out"]), Path(job["root"])
    if job.get("copy_of") and RANK == 0:  # what a run that was killed then left
        shutil.copytree(job["copy_of"], root / Path(job["copy_of"]).name)
    if job["seed"] is not None:
        L.seed_everything(job["seed"])
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp" if RANKS > 1 else "auto",
        devices=1,
        num_nodes=RANKS,
        max_epochs=3,
        accumulate_grad_batches=job["accumulate"],
        use_distributed_sampler="sampler" not in job["kind"],
        callbacks=[
            BTLightning(dir=root),
            ModelCheckpoint(every_n_train_steps=job["every"], save_top_k=-1, filename="{step}"),
        ],
        default_root_dir=str(root),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **job["trainer"],
    )
    torch.manual_seed(3)
    module = make(job["noise"])
    trainer.fit(module, loader(job), DataLoader(Rows(8), batch_size=4))
    out.mkdir(parents=True, exist_ok=True)
    weights = [float(w) for p in module.parameters() for w in p.detach().flatten()]
    said = {"trained": module.trained, "weights": weights, "epochs": module.epochs}
    (out / f"{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        fit(each)
