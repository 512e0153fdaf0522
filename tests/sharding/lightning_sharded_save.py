"""One of two ranks: Lightning trains two steps by FSDP2 and saves a sharded checkpoint by itself.

Beside it, `full.pt` has the whole weights and `exp_avg` by name. Then a run with `BTLightning` goes
on from it for a step; `begun.pt` has the whole weights that it began with.
"""

from __future__ import annotations

import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from bt_lightning import BTLightning


class Net(pl.LightningModule):
    """Weights of even and uneven rows, in two groups of an optimizer, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))
        self.register_buffer("scale", torch.linspace(0, 1, 5))

    def configure_model(self) -> None:
        if torch.distributed.is_initialized():
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return (self.net(batch[0]) * self.scale).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.net[2].parameters(), "lr": 0.5},
            {"params": self.net[0].parameters()},
        ]
        return torch.optim.AdamW(groups, lr=0.25)


class Resumed(Net):
    """Notes what it begins with."""

    def on_train_start(self) -> None:
        self.begun = {name: _whole(each).clone() for name, each in self.state_dict().items()}
        self.begun["step"] = torch.tensor(self.trainer.global_step)


def trainer(**options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip


def batches() -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(48.0).reshape(8, 6) / 48), batch_size=4)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _main(folder: str) -> None:
    pl.seed_everything(1, verbose=False)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    run = trainer(devices=2, strategy=strategy, max_steps=2)
    module = Net()
    run.fit(module, batches())
    run.save_checkpoint(f"{folder}/stock.ckpt")
    (optimizer,) = run.optimizers
    moments = {
        name: _whole(optimizer.state[weight]["exp_avg"])
        for name, weight in module.named_parameters()
    }
    weights = {name: _whole(each) for name, each in module.state_dict().items()}
    if run.is_global_zero:
        torch.save({"weights": weights, "exp_avg": moments}, f"{folder}/full.pt")
    resumed = Resumed()
    other = trainer(
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_steps=3,
        callbacks=[BTLightning(dir=f"{folder}/run", save_at_end=False)],
    )
    other.fit(resumed, batches(), ckpt_path=f"{folder}/stock.ckpt")
    if other.is_global_zero:
        torch.save(resumed.begun, f"{folder}/begun.pt")


if __name__ == "__main__":
    _main(sys.argv[1])
