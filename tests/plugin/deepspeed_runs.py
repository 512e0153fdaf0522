"""Trains as one rank of several with DeepSpeed's engine on the CPU; a script of the tests.

`deepspeed_runs.py JOBS`, a JSON file. Each job is one `fit`; what it came to is in its `out`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import lightning as L
import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch.utils.data import DataLoader, Dataset

from bt_lightning import BTLightning
from bt_lightning.session.fit_selection import process_fits

torch.set_num_threads(1)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
DEVICE = os.environ["DS_ACCELERATOR"]
RANK, RANKS = int(os.environ.get("NODE_RANK", "0")), int(os.environ.get("RANKS", "1"))
WIDTH = 12
HERE = torch.device("cpu", 0)


class CpuDeepSpeed(DeepSpeedStrategy):
    """Lightning refuses the class itself without CUDA, and numbers devices."""

    @property
    def root_device(self) -> torch.device:
        return HERE

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


KIND = CpuDeepSpeed if DEVICE == "cpu" else DeepSpeedStrategy


class Rows(Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.sin(torch.arange(float(WIDTH)) * (index + 1))


class Net(L.LightningModule):
    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__()
        self.job = job
        self.net = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 2 * WIDTH),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(2 * WIDTH, WIDTH),
        )
        self.net[0].bias.requires_grad = not job.get("frozen", False)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, WIDTH))
        self.trained: list[tuple[int, list[int]]] = []

    def on_fit_start(self) -> None:  # before the state is restored
        torch.manual_seed(7 + RANK)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        indices, rows = batch
        if self.global_step == self.job.get("stop_at"):
            wait(self.job)
            os.kill(os.getpid(), signal.SIGKILL)
        self.trained.append((self.global_step, indices.tolist()))
        found = self.net(rows.to(self.net[0].weight.dtype)).float()
        loss = ((found - rows.flip(1)) * self.scale.float()).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        rows = batch[1].to(self.net[0].weight.dtype)
        self.log("val", self.net(rows).float().pow(2).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        weights = [one for one in self.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-2, foreach=False)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def wait(job: dict[str, Any]) -> None:
    """Wait until the checkpoint is committed that the test expects."""
    until = time.monotonic() + 60
    while "there" in job and not (Path(job["root"]) / job["there"]).is_dir():
        assert time.monotonic() < until
        time.sleep(0.01)


def die_in_save(engine: Any, job: dict[str, Any]) -> None:
    """Kill this rank and its worker in the middle of the engine's save of a step."""
    save = engine._save_zero_checkpoint

    def dying(*args: Any) -> None:
        if engine.global_steps == job["dies_in"] and job["dying"] == RANK:
            wait(job)
            for child in multiprocessing.active_children():
                child.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        save(*args)

    engine._save_zero_checkpoint = dying


def local_state(trainer: L.Trainer) -> list[torch.Tensor]:
    """Every tensor that this rank holds of the weights and of the optimizer."""
    outer = trainer.optimizers[0]
    found = [getattr(one, "ds_tensor", one) for one in trainer.lightning_module.parameters()]
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        found += list(getattr(outer, name, ()))
    for entry in outer.optimizer.state.values():
        found += [entry[name] for name in sorted(entry) if torch.is_tensor(entry[name])]
    return [one.detach().float() for one in found]


class Report(Callback):
    """Writes what a fit came to."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.first: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.first = trainer.global_step
        if "dies_in" in self.job:
            die_in_save(trainer.strategy.model, self.job)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        digest = hashlib.sha256()
        for value in local_state(trainer):
            digest.update(value.contiguous().cpu().numpy().tobytes())
        said = {
            "digest": digest.hexdigest(),
            "first": self.first,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "trained": pl_module.trained,
            "draw": torch.rand(3).tolist(),
            "optimizer": type(trainer.optimizers[0]).__name__,
        }
        (Path(self.job["out"]) / f"{RANK}.json").write_text(json.dumps(said))


def fit(job: dict[str, Any]) -> None:
    process_fits.clear()
    if job.get("apart"):
        job["root"] += f"-{RANK}"
    if job.get("lose") == RANK:  # the node has a new, empty disk
        shutil.rmtree(job["root"])
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    L.seed_everything(job.get("seed", 1), verbose=False)
    bt = (
        []
        if job.get("stock")
        else [BTLightning(dir=job["root"], fit_name="one", **job.get("bt", {}))]
    )
    trainer = L.Trainer(
        accelerator=DEVICE,
        strategy="ddp" if job.get("ddp") else KIND(stage=job["stage"], **job.get("ds", {})),
        devices=1,
        num_nodes=RANKS,
        max_epochs=job.get("epochs", 2),
        precision=job.get("precision", "32-true"),
        callbacks=[
            *bt,
            ModelCheckpoint(
                **{"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
                | job.get("save", {})
            ),
            Report(job),
        ],
        default_root_dir=job["root"],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=True,
        **job.get("trainer", {}),
    )
    torch.manual_seed(3)
    module = Net(job)
    loader = DataLoader(Rows(), batch_size=job.get("batch", 4), shuffle=True)
    validation = DataLoader(Rows(), batch_size=12) if job.get("validates") else None
    trainer.fit(module, loader, validation, ckpt_path=job.get("ckpt_path"))
    if job.get("validates"):
        best = trainer.validate(module, validation, ckpt_path="best", verbose=False)
        (Path(job["out"]) / f"validated-{RANK}.json").write_text(json.dumps(best))


if __name__ == "__main__":
    deepspeed.utils.logging.logger.setLevel("ERROR")
    for each in json.loads(Path(sys.argv[1]).read_text()):
        fit(each)
    torch.distributed.destroy_process_group()  # gloo's threads may wait for each other at exit
