"""A training loop with Lightning's Fabric, saved and resumed: `python examples/fabric.py`.

It trains on as many processes as `--devices` says; each resumes from what rank 0 finds. Stop it at
any time, and start it again. With one device it prints

    epoch 1: last loss 0.4144
    epoch 2: last loss 0.3197
    epoch 3: last loss 0.2766
    newest checkpoint: step 120
"""

from __future__ import annotations

import argparse
import warnings

import torch
from lightning.fabric import Fabric
from plain_loop import make_model, moons
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from bt_lightning import Checkpointer

EPOCHS = 3


def main(devices: int) -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # of torchdata
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    torch.manual_seed(7 + fabric.global_rank)
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    rows = moons(1280)
    sampler = StatefulDistributedSampler(rows, devices, fabric.global_rank, shuffle=True)
    loader = StatefulDataLoader(rows, batch_size=32 // devices, sampler=sampler)

    with Checkpointer("fabric_checkpoints", keep=3) as ck:  # or $BT_CHECKPOINT_DIR
        state = ck.load_latest(
            {"model": model, "optimizer": optimizer, "loader": loader, "epoch": 0, "step": 0}
        )
        while state["epoch"] < EPOCHS:
            sampler.set_epoch(state["epoch"])
            for points, side in loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points), side)
                fabric.backward(loss)
                optimizer.step()
                state["step"] += 1
                ck.step()
                if state["step"] % 15 == 0:
                    ck.save(state, state["step"], metrics={"loss": loss.item()})
            state["epoch"] += 1
            fabric.print(f"epoch {state['epoch']}: last loss {loss.item():.4f}", flush=True)
            ck.save(state, state["step"], epoch=state["epoch"])
    fabric.print("newest checkpoint: step", state["step"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    main(parser.parse_args().devices)
