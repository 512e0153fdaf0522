"""The small model of the runs that are broken off, its data, and what is compared at the end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset


class Points(Dataset[torch.Tensor]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), index / self.length)


class Net(L.LightningModule):
    """Draws random numbers in each step, and has a scheduler."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = [torch.nn.Linear(8, width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1)]
        self.net = torch.nn.Sequential(*layers)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss = (self.net(batch) - 1).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class LowRank(torch.nn.Module):
    """A layer that does not train, and what is learned to be added to it."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(requires_grad=False)
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows) + self.up(self.down(rows))


class Adapted(Net):
    """Low-rank layers on a base that is the same at each start, whatever the seed of the run."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(width)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            base = [torch.nn.Linear(8, width), torch.nn.Linear(width, width)]
        self.net = torch.nn.Sequential(*map(LowRank, base), *self.net[1:])

    def configure_optimizers(self) -> object:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class Journal(Callback):
    """Writes what the test asserts on, one JSON line each, unbuffered."""

    def __init__(self, path: str, life: int) -> None:
        self._path, self._life = path, life

    def write(self, **facts: object) -> None:
        with Path(self._path).open("a") as file:
            file.write(json.dumps({"life": self._life, **facts}) + "\n")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(event="start", step=trainer.global_step, resumed=trainer.ckpt_path)


def digest(trainer: L.Trainer) -> str:
    """Of the weights and of what the optimizer knows."""
    found = hashlib.sha256()
    for tensor in trainer.lightning_module.state_dict().values():
        found.update(tensor.numpy().tobytes())
    for state in trainer.optimizers[0].state_dict()["state"].values():
        for name in sorted(state):
            found.update(state[name].numpy().tobytes())
    return found.hexdigest()
