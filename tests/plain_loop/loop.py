"""A loop of torch alone, on one rank or several: `loop.py JSON`, the arguments of `train`.

It prints `began STEP` and `ended STEP DIGEST`; whatever is drawn or shuffled changes the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from bt_lightning import Checkpointer
from bt_lightning.session.agree_on_boundary import RankAgreement

BATCHES, EPOCHS = 6, 3


class Rows(Dataset[torch.Tensor]):
    def __init__(self, ranks: int) -> None:
        self._length = 4 * BATCHES * ranks

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), float(index))


def digest(*values: Any) -> str:
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for name in value:
                found.update(str(name).encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            found.update(repr(value).encode())

    add([value.state_dict() for value in values])
    return found.hexdigest()[:12]


def kill(ck: Checkpointer, rank: int) -> None:
    """End this process when all that was saved is committed."""
    if rank == 0:
        ck._open.run.session.writer.saves.saver.drain()
    os.kill(os.getpid(), signal.SIGKILL)


def tell(ck: Checkpointer) -> None:
    """Tell this process to end, and wait until the ranks ask each other where."""
    os.kill(os.getpid(), signal.SIGTERM)
    agreement = ck._open._signal_end and ck._open._signal_end._agreement
    deadline = time.monotonic() + 60
    while isinstance(agreement, RankAgreement) and agreement._member.asked is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def train(  # noqa: C901, PLR0912 - as a user writes it: one loop
    root: str,
    store: str,
    seed: int,
    kill_at: int = 0,
    kill_after: int = 0,
    end_at: int = 0,
    ends: str = "all",
    workers: int = 0,
    plain: bool = False,
    **options: Any,
) -> None:
    """`kill_at`: a step; `kill_after`: an epoch; `plain`: with a loader that has no state.

    `end_at`: the step at which SIGTERM comes to `ends`: all ranks, or the last one.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3)
    model: torch.nn.Module = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1))
    if ranks > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = Rows(ranks)
    sampler = StatefulDistributedSampler(rows, ranks, rank, shuffle=True) if ranks > 1 else None
    shuffle = {"sampler": sampler} if sampler is not None else {"shuffle": True}
    kind = DataLoader if plain else StatefulDataLoader
    loader = kind(rows, batch_size=4, num_workers=workers, **shuffle)
    state: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5),
        **({} if plain else {"loader": loader}),
        "epoch": 0,
        "step": 0,
        "seen": torch.zeros(4),
    }
    told = False
    with Checkpointer(root, store, **{"keep": 2, "project": "p", "job": "j", **options}) as ck:
        state = ck.load_latest(state)
        print("began", state["step"], flush=True)
        while state["epoch"] < EPOCHS and not told:
            if sampler is not None:
                sampler.set_epoch(state["epoch"])
            for number, batch in enumerate(loader, state["step"] % BATCHES + 1):
                optimizer.zero_grad()
                loss = model(batch + torch.rand(4)).square().mean()
                loss.backward()
                optimizer.step()
                state["scheduler"].step()
                state["seen"] += batch.sum(0)
                state["step"] += 1
                if state["step"] == end_at and (ends == "all" or rank == ranks - 1):
                    tell(ck)
                told = ck.step()
                if number < BATCHES and (told or not options.get("grace")):
                    ck.save(state, state["step"], metrics={"loss": loss.item()})
                if told:
                    break
                if state["step"] == kill_at:
                    kill(ck, rank)
            if told:
                break
            state["epoch"] += 1
            ck.save(state, state["step"], epoch=state["epoch"])
            if state["epoch"] == kill_after:
                kill(ck, rank)
    if ranks == 1:
        print("ended", state["step"], digest(model, optimizer, state["scheduler"]), state["seen"])
    else:
        print("ended", state["step"], digest(model.module, optimizer, state["scheduler"]))


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
