"""LightningCLI, with everything in YAML: the callback, its options, the logger.

`python examples/lightning_cli/train.py fit --config examples/lightning_cli/moons.yaml`

Stop it at any time (Ctrl-C, kill -9), and start it again, with other words for the same as well, as
in `--trainer.callbacks.grace=60`: it goes on inside its epoch, beside the `config.yaml` of its
first start, and its CSV file stays one, with each step once. To begin anew, delete the folder
`lightning_cli_run`.

    epoch 1: loss 0.3767
    epoch 2: loss 0.2747
    ...
    epoch 6: loss 0.1054
    240 steps in 1 log, 96.7% right
"""

from __future__ import annotations

import csv
import logging
import math
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset


class Moons(L.LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def training_step(self, batch, _):
        points, side = batch
        loss = binary_cross_entropy_with_logits(self.net(points)[:, 0], side)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        loss = self.trainer.callback_metrics["loss_epoch"]
        print(f"epoch {self.current_epoch + 1}: loss {loss:.4f}", flush=True)


class MoonData(L.LightningDataModule):
    """Two half circles, one in the other, with noise."""

    def __init__(self, samples: int = 1000, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        draw = torch.Generator().manual_seed(0)
        angle = math.pi * torch.rand(samples, generator=draw)
        self.side = (torch.arange(samples) % 2).float()
        x = torch.where(self.side > 0, 1 - angle.cos(), angle.cos())
        y = torch.where(self.side > 0, 0.5 - angle.sin(), angle.sin())
        self.points = torch.stack([x, y], 1) + 0.1 * torch.randn(samples, 2, generator=draw)

    def train_dataloader(self):
        return DataLoader(
            TensorDataset(self.points, self.side), batch_size=self.batch_size, shuffle=True
        )


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args((torch.optim.Optimizer,))

    def after_fit(self):
        with torch.no_grad():
            found = self.model.net(self.datamodule.points)[:, 0] > 0
        right = (found == (self.datamodule.side > 0)).float().mean()
        logs = list(Path(self.trainer.default_root_dir).glob("lightning_logs/*/metrics.csv"))
        with logs[0].open() as file:
            steps = sum(1 for row in csv.DictReader(file) if row["loss_step"])
        print(f"{steps} steps in {len(logs)} log, {right:.1%} right")


def main() -> None:
    warnings.filterwarnings("ignore")  # Lightning's advice for larger trainings
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    CLI(Moons, MoonData)


if __name__ == "__main__":
    main()
