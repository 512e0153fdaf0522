"""A loop with Lightning's Fabric, on one rank or several: `fabric_loop.py ROOT STEPS KILL_AT`.

It prints `began STEP` and `ended STEP SUM`.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from lightning.fabric import Fabric

from bt_lightning import Checkpointer


def main(root: str, steps: int, kill_at: int) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", loggers=[]
    )
    fabric.launch()
    torch.manual_seed(3 + fabric.global_rank)
    layers = torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)
    plain = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1))
    model, optimizer = fabric.setup(plain, torch.optim.AdamW(plain.parameters(), 1e-2))
    with Checkpointer(root, keep=2) as ck:
        state = ck.load_latest({"model": model, "optimizer": optimizer, "step": 0})
        print("began", state["step"], flush=True)
        while state["step"] < steps:
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(16, 8)).square().mean())
            optimizer.step()
            state["step"] += 1
            ck.step()
            ck.save(state, state["step"])
            if state["step"] == kill_at:
                if fabric.is_global_zero:
                    ck._open.run.session.writer.saves.saver.drain()
                os.kill(os.getpid(), signal.SIGKILL)
    total = sum(float(value.double().sum()) for value in plain.state_dict().values())
    print("ended", state["step"], repr(total))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
