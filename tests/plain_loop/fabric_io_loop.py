"""A loop of Fabric that saves by `fabric.save`: `fabric_io_loop.py ROOT STORE STEPS KILL_AT`.

It prints `began STEP` and `ended STEP SUM`.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from lightning.fabric import Fabric

from bt_lightning.fabric import BTAsyncCheckpointIO


def main(root: str, store: str, steps: int, kill_at: int) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    io = BTAsyncCheckpointIO(root, store, project="p", job="j")
    strategy = "ddp" if ranks > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy, loggers=[], plugins=[io])
    fabric.launch()
    torch.manual_seed(3)
    plain = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))
    model, optimizer = fabric.setup(plain, torch.optim.AdamW(plain.parameters(), 1e-2))
    with io:
        state = {"model": model, "optimizer": optimizer, "step": 0}
        if io.latest is not None:
            fabric.load(io.latest, state)
        print("began", state["step"], flush=True)
        while state["step"] < steps:
            torch.manual_seed(1000 * state["step"] + fabric.global_rank)
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(16, 8)).square().mean())
            optimizer.step()
            state["step"] += 1
            fabric.save(io.root / f"checkpoint-{state['step']}", state)
            if fabric.is_global_zero and state["step"] > 2:
                io.remove_checkpoint(io.root / f"checkpoint-{state['step'] - 2}")
            if state["step"] == kill_at:
                if fabric.is_global_zero:
                    io._run.session.writer.saves.saver.drain()
                os.kill(os.getpid(), signal.SIGKILL)
    total = sum(float(value.double().sum()) for value in plain.state_dict().values())
    print("ended", state["step"], repr(total))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
