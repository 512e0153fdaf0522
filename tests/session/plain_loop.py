"""A training loop of torch alone, which drives a session: what an adapter of a framework does.

plain_loop.py ROOT STEPS [kill STEP]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from bt_lightning.session.checkpoint_writer import CheckpointWriter
from bt_lightning.session.options import Options
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.ranks import Ranks

EVERY = 3


def main(root: Path, steps: int, kill_at: int = 0) -> None:
    if "MASTER_ADDR" in os.environ:
        torch.distributed.init_process_group("gloo")
    ranks = Ranks.of_process_group()
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    session = RankSession(Options.of(dir=str(root), store=f"file://{root}.store").merged({}))
    writer = CheckpointWriter()
    ranks.begin_meetings()
    start = session.open(root, ranks)
    state = session.load(start, root)
    step = 0
    if state is not None:
        step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer_states"][0])
    print("began at", step, flush=True)
    session.begin(lambda: [optimizer])
    while step < steps:
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(16, 4, generator=generator)
        optimizer.zero_grad()
        (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        step += 1
        session.boundary()
        if step % EVERY == 0 and ranks.is_zero:
            state = {
                "step": step,
                "model": model.state_dict(),
                "optimizer_states": [optimizer.state_dict()],
            }
            session.save(writer, state, root / f"step-{step}", root)
            old = root / f"step-{step - 2 * EVERY}"
            if step > 2 * EVERY:
                session.remove(old, root)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    session.finish()
    digest = sum(float(p.double().sum()) for p in model.state_dict().values())
    strange = {"lightning", "pytorch_lightning", "lightning_fabric", "transformers"}
    assert not strange.intersection(sys.modules), "a framework was imported"
    print("ended at", step, "with", repr(digest), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int((sys.argv[4:] or ["0"])[0]))
