"""A loop whose model lies on all ranks, by FSDP2: `sharded_loop.py JSON`, the arguments of `train`.

It prints `began STEP`, and `ended STEP DIGEST SUM`: of what this rank has, and of the whole model.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from bt_lightning import Checkpointer
from bt_lightning.fabric import BTAsyncCheckpointIO
from bt_lightning.snapshot.local_shards import live_state


def make(kind: str, ranks: int) -> tuple[Any, Any, Any]:
    """A model and its optimizer; the Fabric, if there is one."""
    layers = torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
    model: Any = torch.nn.Sequential(*layers)
    if kind.startswith("fabric"):
        strategy = ModelParallelStrategy(
            lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]), ranks, 1
        )
        fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy, loggers=[])
        fabric.launch()
        model = fabric.setup(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, fabric.setup_optimizers(optimizer), fabric
    if kind == "fsdp":
        torch.distributed.init_process_group("gloo")
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2), None


def digest(model: Any, optimizer: Any) -> str:
    found = hashlib.sha256()
    state = live_state(model, [optimizer])
    entries = state["optimizer_states"][0]["state"].values()
    for value in [*state["state_dict"].values(), *(v for e in entries for v in e.values())]:
        local = value.to_local() if hasattr(value, "to_local") else value
        found.update(local.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def whole_sum(model: Any) -> float:
    values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return sum(float(value.detach().double().sum()) for value in values)


def train(root: str, kind: str, seed: int, steps: int, kill_at: int = 0, **options: Any) -> None:
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.manual_seed(5)
    model, optimizer, fabric = make(kind, ranks)
    if kind == "fabric.save":
        train_by_fabric(fabric, root, {"model": model, "optimizer": optimizer}, steps, kill_at)
        return
    torch.manual_seed(seed + rank)
    rows = [torch.full((4,), float(index)) for index in range(24 * ranks)]
    sampler = StatefulDistributedSampler(rows, ranks, rank, shuffle=True)
    loader = StatefulDataLoader(rows, batch_size=4, sampler=sampler)  # type: ignore[arg-type]
    state = {"model": model, "optimizer": optimizer, "loader": loader, "step": 0}
    with Checkpointer(root, keep=2, **options) as ck:
        state = ck.load_latest(state)
        print("began", state["step"], whole_sum(model), flush=True)
        batches = iter(loader)
        while state["step"] < steps:
            optimizer.zero_grad()
            model(next(batches)).square().mean().backward()
            optimizer.step()
            state["step"] += 1
            ck.step()
            ck.save(state, state["step"])
            if state["step"] == kill_at:
                ck._open.run.session.saves.saver.drain()
                os.kill(os.getpid(), signal.SIGKILL)
    print("ended", state["step"], digest(model, optimizer), whole_sum(model))


def train_by_fabric(fabric: Any, root: str, state: Any, steps: int, kill_at: int) -> None:
    """With saves by `fabric.save`, and one elsewhere."""
    io = BTAsyncCheckpointIO(root)
    state["step"] = 0
    with io.of(fabric):
        if io.latest is not None:
            fabric.load(io.latest, state)
        print("began", state["step"], whole_sum(state["model"]), flush=True)
        while state["step"] < steps:
            torch.manual_seed(1000 * state["step"] + fabric.global_rank)
            state["optimizer"].zero_grad()
            fabric.backward(state["model"](torch.randn(8, 4)).square().mean())
            state["optimizer"].step()
            state["step"] += 1
            fabric.save(io.root / f"checkpoint-{state['step']}", state)
            if fabric.is_global_zero and state["step"] > 2:
                io.remove_checkpoint(io.root / f"checkpoint-{state['step'] - 2}")
            if state["step"] == kill_at:
                io._run.session.saves.saver.drain()
                os.kill(os.getpid(), signal.SIGKILL)
        fabric.save(f"{root}-elsewhere", state)
    print(
        "ended",
        state["step"],
        digest(state["model"], state["optimizer"]),
        whole_sum(state["model"]),
    )


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
