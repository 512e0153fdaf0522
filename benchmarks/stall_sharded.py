"""One run of `stall.py` on ranks that hold parts (FSDP2, gloo); rank 0 prints one JSON line.

As `stall_run.py --step wait`: a step is a wait, as for a device that computes by itself, and an
update that writes one number into each local tensor. The state is `size` bytes on all ranks
together: weights, sharded by FSDP2, and two moments for each. Every rank is a process, started by
Lightning.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from stall_run import Clock, DcpIO, Staged, TorchCheckpointingIO
from step_times import quiet
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from typing_extensions import override

from bt_lightning import BTLightning
from bt_lightning.localdir.event_log import read_events

WIDTH = 1024


class Stamping(torch.optim.Optimizer):
    """AdamW's state, and a step that writes one number into what this rank has of each tensor."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 1e-3, "betas": (0.9, 0.999)})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            state["step"].add_(1)
            for tensor in (weight, state["exp_avg"], state["exp_avg_sq"]):
                tensor.to_local().view(-1)[:1].add_(1)
        return loss


class Sharded(L.LightningModule):
    """`tensors` counts all of the checkpoint: a weight, two moments and a step for each layer."""

    def __init__(self, size: int, tensors: int, step_s: float) -> None:
        super().__init__()
        self.layers = tensors // 4
        self.rows = size // 4 // 3 // self.layers // WIDTH
        self.step_s = step_s

    def configure_model(self) -> None:
        layers = [torch.nn.Linear(WIDTH, self.rows, bias=False) for _ in range(self.layers)]
        self.net = torch.nn.ModuleList(layers)
        for layer in self.net:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, index):
        time.sleep(self.step_s)
        return torch.zeros((), requires_grad=True)

    def backward(self, loss) -> None:
        """The gradient of a large weight is as large: nobody looks at it here."""

    def configure_optimizers(self):
        return Stamping(self.parameters())


class Rival(ModelParallelStrategy):
    """Lightning's strategy, whose distributed saves another library makes in the background.

    What is saved are the live shards, which the library copies by itself.
    """

    def __init__(self, io: DcpIO | TorchCheckpointingIO, **options) -> None:
        super().__init__(**options)
        self.io = io

    @override
    def lightning_module_state_dict(self):
        return dict(self.model.named_parameters())

    @override
    def optimizer_state(self, optimizer):
        names = {weight: name for name, weight in self.model.named_parameters()}
        return {names[weight]: dict(state) for weight, state in optimizer.state.items()}

    @override
    def save_checkpoint(self, checkpoint, filepath, storage_options=None) -> None:
        state = {
            "state_dict": checkpoint["state_dict"],
            "optimizer_0": checkpoint["optimizer_states"][0],
        }
        self.io.save_checkpoint(state, self.broadcast(filepath))

    @override
    def remove_checkpoint(self, filepath) -> None:
        if self.is_global_zero:
            self.io.remove_checkpoint(filepath)

    @override
    def teardown(self) -> None:
        self.io.teardown()
        super().teardown()


class AtStart(L.Callback):
    """Makes what saves when the process group is there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, trainer, pl_module, stage) -> None:
        if self.name == "torch-checkpointing":
            io = TorchCheckpointingIO()
        else:
            group = torch.distributed.new_group(backend="gloo")
            io = DcpIO(self.name.partition("-")[2].upper(), pinned=False, group=group)
        trainer.strategy.io = io
        trainer.callbacks.append(Staged(io))


def durable_of_ours(root: Path) -> dict[str, object]:
    found = [e for e in read_events(root) if e["event"] == "save" and e["local_durable_s"]]
    return {
        "durable_s": [e["local_durable_s"] for e in found],
        "worker_s": [e["cpu_s"] for e in found],
        "guard_ms": [e["guard_ms"] for e in found],
        "decisions": [e["decision"] for e in found],
        "kinds": [e["snapshot"] for e in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True)
    parser.add_argument("--size", type=int, default=1_500_000_000)
    parser.add_argument("--tensors", type=int, default=80)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--step-s", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=80)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the ranks that this one starts
    torch.set_num_threads(1)
    name, root = options.system, options.dir
    every = 10**9 if name == "none" else options.every
    saving = ModelCheckpoint(
        dirpath=None if name == "ours" else root, every_n_train_steps=every, save_top_k=1
    )
    clock = Clock()
    callbacks: list[L.Callback] = [clock, saving]
    mesh = {
        "data_parallel_size": options.ranks,
        "tensor_parallel_size": 1,
        "process_group_backend": "gloo",
    }
    if name == "ours":
        callbacks.append(BTLightning(dir=root, save_at_end=False))  # as the rivals save
    rival = name not in {"none", "ours", "plain"}
    if rival:
        callbacks.append(AtStart(name))
    strategy = Rival(None, **mesh) if rival else ModelParallelStrategy(**mesh)
    trainer = L.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=options.ranks,
        strategy=strategy,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    clock.watch(trainer)
    module = Sharded(options.size, options.tensors, options.step_s)
    trainer.fit(module, DataLoader(torch.zeros(10**6, 1)))

    def told() -> dict[str, object]:
        return (
            durable_of_ours(root)
            if name == "ours"
            else ({"durable_s": strategy.io.durable} if rival else {})
        )

    found = clock.facts(told)
    if trainer.is_global_zero:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
