"""The small model of the runs that are broken off, its data, and what is compared at the end."""

from __future__ import annotations

import hashlib

import lightning as L
import torch
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


def digest(trainer: L.Trainer) -> str:
    """Of the weights and of what the optimizer knows."""
    found = hashlib.sha256()
    for tensor in trainer.lightning_module.state_dict().values():
        found.update(tensor.numpy().tobytes())
    for state in trainer.optimizers[0].state_dict()["state"].values():
        for name in sorted(state):
            found.update(state[name].numpy().tobytes())
    return found.hexdigest()
