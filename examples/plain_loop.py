"""A training loop without a framework, saved and resumed: `python examples/plain_loop.py`.

Stop it at any time (Ctrl-C, kill -9), and start it again: it goes on, and ends with the same lines.

    epoch 1: loss 0.4546
    epoch 2: loss 0.2853
    ...
    epoch 8: loss 0.0849
    newest checkpoint: step 320
"""

from __future__ import annotations

import warnings

import torch
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from bt_lightning import Checkpointer

EPOCHS = 8


def moons(rows: int) -> TensorDataset:
    """Two half circles that interlock, with noise: points, and which of them they are on."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(rows) % 2
    angle = torch.pi * torch.rand(rows, generator=generator)
    x = torch.where(side == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(side == 0, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.1 * torch.randn(rows, 2, generator=generator)
    return TensorDataset(points, side.float())


def make_model() -> torch.nn.Module:
    hidden = [torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Dropout(0.1)]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(32, 1), torch.nn.Flatten(0))


def main() -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # of torchdata
    torch.manual_seed(7)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = StatefulDataLoader(moons(1280), batch_size=32, shuffle=True)

    with Checkpointer("plain_loop_checkpoints", keep=3) as ck:  # or $BT_CHECKPOINT_DIR
        state = ck.load_latest(
            {
                "model": model,
                "optimizer": optimizer,
                "loader": loader,
                "epoch": 0,
                "step": 0,
                "sum": 0.0,
            }
        )
        while state["epoch"] < EPOCHS:
            for points, side in loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points), side)
                loss.backward()
                optimizer.step()
                state["step"] += 1
                state["sum"] += loss.item()
                ck.step()
                if state["step"] % 15 == 0:
                    ck.save(state, state["step"], metrics={"loss": loss.item()})
            state["epoch"] += 1
            print(f"epoch {state['epoch']}: loss {state['sum'] / len(loader):.4f}", flush=True)
            state["sum"] = 0.0
            ck.save(state, state["step"], epoch=state["epoch"])
    print("newest checkpoint: step", state["step"])


if __name__ == "__main__":
    main()
