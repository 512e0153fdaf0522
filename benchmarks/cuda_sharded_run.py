"""One training run of `cuda_sharded.py`, in a process of its own; prints one JSON line.

The state is `size` bytes: weights of linear blocks, each sharded by FSDP2, and two moments. Forward
and backward are real, for `step-s` seconds more the device multiplies matrices. The optimizer adds
one to each element of the state, so that all are `n` after step `n`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from stall_run import Clock
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from bt_lightning import BTCheckpointIO, BTLightning
from bt_lightning.localdir.event_log import read_events
from bt_lightning.snapshot import cuda_copies

COPIES = 3
"""Of each weight: itself and two moments."""


class Counting(torch.optim.Optimizer):
    """Adds one to each element of the weights and of two moments."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            if not state:
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            for tensor in (weight, *state.values()):
                tensor.add_(1)
        return loss


class Blocks(L.LightningModule):
    def __init__(self, size: int, width: int, step_s: float) -> None:
        super().__init__()
        self.width = width
        self.count = max(1, size // (COPIES * 4 * width * width))
        self.step_s = step_s
        self.rounds = 0
        self.began = 0.0
        self.restored: set[float] = set()

    def configure_model(self) -> None:
        blocks = [torch.nn.Linear(self.width, self.width, bias=False) for _ in range(self.count)]
        for block in blocks:
            torch.nn.init.zeros_(block.weight)
        self.net = torch.nn.Sequential(*blocks)
        mesh = self.device_mesh["data_parallel"]
        for block in self.net:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def configure_optimizers(self):
        return Counting(self.parameters())

    def on_train_start(self) -> None:
        self.began = time.perf_counter()
        state = self.trainer.optimizers[0].state.values()
        tensors = [*self.parameters(), *(tensor for entry in state for tensor in entry.values())]
        self.restored = {float(value) for one in tensors for value in one.to_local().unique()}
        if self.step_s:
            self.factor = torch.randn(4096, 4096, device=self.device)
            self._multiply(10)  # the first is slower
            started = time.perf_counter()
            self._multiply(10)
            self.rounds = round(10 * self.step_s / (time.perf_counter() - started))

    def training_step(self, batch, index):
        self._multiply(self.rounds)
        return self.net(batch.expand(8, self.width)).square().mean()

    def _multiply(self, rounds: int) -> None:
        for _ in range(rounds):
            torch.mm(self.factor, self.factor)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def trained(options: argparse.Namespace, *, saves: bool, ckpt_path: Path | None = None):
    """Fit as `options` say; the module, the trainer, the times of steps and saves."""
    ours = options.system == "ours"
    saving = ModelCheckpoint(
        dirpath=None if ours else options.dir,
        every_n_train_steps=options.every if saves else 10**9,
        save_top_k=-1,
    )
    clock = Clock()
    callbacks = [clock, saving]
    if ours:
        callbacks.append(BTLightning(dir=options.dir, save_at_end=False, resume="never"))
    trainer = L.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        accelerator=options.accelerator,
        devices=1,
        strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    clock.watch(trainer)
    module = Blocks(options.size, options.width, options.step_s)
    trainer.fit(module, DataLoader(torch.ones(10**6, 1)), ckpt_path=ckpt_path)
    return module, trainer, clock


def torn(options: argparse.Namespace) -> dict[str, object]:
    """Save all the time; read every checkpoint back: how many are not of one step."""
    room = options.kind == "clone"
    cuda_copies.DeviceCopies._has_room = lambda *_: room  # noqa: SLF001 - both ways are measured
    trained(options, saves=True)
    kinds: dict[str, int] = {}
    for event in read_events(options.dir):
        if event["event"] == "save":
            kinds[event["snapshot"]] = kinds.get(event["snapshot"], 0) + 1
    saves = failures = 0
    for path in sorted(options.dir.glob("*/bt_manifest.json")):
        state = BTCheckpointIO().load_checkpoint(path.parent)
        tensors = list(state["state_dict"].values())
        for entry in state["optimizer_states"][0]["state"].values():
            tensors += entry.values()
        values = {float(value) for tensor in tensors for value in tensor.unique()}
        saves += 1
        failures += values != {float(state["global_step"])}
    return {"saves": saves, "torn": failures, "kinds": kinds}


def stall(options: argparse.Namespace) -> dict[str, object]:
    _, _, clock = trained(options, saves=options.system != "none")
    return clock.facts(dict)


def restore(options: argparse.Namespace) -> dict[str, object]:
    """Go on from the newest checkpoint in `dir`."""
    steps = {int(path.name.rpartition("-")[2]): path for path in options.dir.glob("checkpoint-*")}
    began = time.perf_counter()
    module, trainer, _ = trained(options, saves=False, ckpt_path=steps[max(steps)])
    return {
        "until_training_s": module.began - began,
        "restored": sorted(module.restored),
        "step": trainer.global_step,
    }


ACTS = {"torn": torn, "stall": stall, "restore": restore}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--act", choices=list(ACTS), required=True)
    parser.add_argument("--accelerator", default="cuda")
    parser.add_argument("--system", default="ours")
    parser.add_argument("--kind", default="clone")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "torch.distributed", ""):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    print(json.dumps(ACTS[options.act](options)), flush=True)


if __name__ == "__main__":
    main()
