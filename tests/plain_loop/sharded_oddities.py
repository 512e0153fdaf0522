"""What loops whose model lies on ranks should not do: `sharded_oddities.py ACT ROOT`."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import sharded_loop
import torch
from torch.distributed.fsdp import fully_shard

from bt_lightning import Checkpointer
from bt_lightning.errors import CheckpointError, InvalidSettingError
from bt_lightning.fabric import BTAsyncCheckpointIO
from bt_lightning.snapshot.copy_and_torn_check import Capture
from bt_lightning.snapshot.host_copies import HostCopier

RANK = int(os.environ.get("RANK", "0"))


class Fragile:
    """Has a state, which cannot be had at times on rank 1."""

    def __init__(self) -> None:
        self.broken = False

    def state_dict(self) -> dict[str, int]:
        if self.broken and RANK == 1:
            msg = "the reader is gone"
            raise OSError(msg)
        return {"rank": RANK}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {"rank": RANK}


def train(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def fails_once(root: str) -> None:
    """A save fails on one rank, which goes on; the next is of one step on both."""
    model, optimizer, _ = sharded_loop.make("fsdp", 2)
    fragile = Fragile()
    state = {"model": model, "optimizer": optimizer, "fragile": fragile, "step": 0}
    with Checkpointer(root) as ck:
        ck.load_latest(state)
        for step in (1, 2, 3):
            train(model, optimizer)
            fragile.broken, state["step"] = step == 2, step
            try:
                ck.save(state, step)
                saves = ck._open.run.session.saves
                saves.saver.drain()
                saves.collect()
            except (OSError, CheckpointError) as error:
                print(step, type(error).__name__, error, flush=True)


def fails_before(root: str) -> None:
    """A save fails on rank 0 before it collects its state; both go on."""
    model, optimizer, _ = sharded_loop.make("fsdp", 2)
    state = {"model": model, "optimizer": optimizer, "step": 0}
    with Checkpointer(root) as ck:
        ck.load_latest(state)
        for step in (1, 2, 3):
            train(model, optimizer)
            state["step"] = step
            loss: Any = "none" if step == 2 and RANK == 0 else 1.0
            try:
                ck.save(state, step, metrics={"loss": loss})
            except ValueError as error:
                print(step, type(error).__name__, flush=True)


def sharded_late(root: str) -> None:
    """The model is sharded when the start point is loaded already."""
    torch.distributed.init_process_group("gloo")
    model: Any = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    with Checkpointer(root) as ck:
        ck.load_latest({"model": model, "optimizer": optimizer})
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        train(model, optimizer)
        try:
            ck.save({"model": model, "optimizer": optimizer}, 1)
        except InvalidSettingError as error:
            print(error, flush=True)


def own_names(root: str) -> None:
    """Plain values of a script have the names that a checkpoint has for its entries."""
    model, optimizer, fabric = sharded_loop.make("fabric", 2)
    names = {"state": 7, "names": 8, "state_dict": 9, "optimizer_states": 10, "ranks": 11}
    state = {"model": model, "optimizer": optimizer, **names}
    io = BTAsyncCheckpointIO(root)
    with io.of(fabric):
        train(model, optimizer)
        fabric.save(io.root / "one", state)
        before = sharded_loop.digest(model, optimizer)
    train(model, optimizer)
    again = {"model": model, "optimizer": optimizer, **dict.fromkeys(names, 0)}
    with io.of(fabric):
        fabric.load(io.latest, again)
    print(sharded_loop.digest(model, optimizer) == before, {n: again[n] for n in names} == names)


def loads_beside_a_copy(root: str) -> None:
    """What is loaded behind a save does not get into it, though it is copied later."""
    model, optimizer, fabric = sharded_loop.make("fabric", 2)
    state, copies = {"model": model, "optimizer": optimizer}, threading.Event()
    run, guard = HostCopier.run, Capture.guard

    def held(copier: HostCopier, batches: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert copies.wait(60)
        run(copier, batches)

    def guarded(capture: Capture) -> None:
        copies.set()
        guard(capture)

    io = BTAsyncCheckpointIO(root)
    with io.of(fabric):
        train(model, optimizer)
        fabric.save(io.root / "one", state)
        train(model, optimizer)
        wanted = sharded_loop.digest(model, optimizer)
        HostCopier.run = held  # type: ignore[method-assign]
        fabric.save(io.root / "two", state)
        Capture.guard = guarded  # type: ignore[method-assign]
        fabric.load(io.root / "one", state)
        copies.set()
        differs = sharded_loop.digest(model, optimizer) != wanted
        fabric.load(io.root / "two", state)
    print(differs, sharded_loop.digest(model, optimizer) == wanted)


if __name__ == "__main__":
    each = (fails_once, fails_before, sharded_late, own_names, loads_beside_a_copy)
    acts = {act.__name__: act for act in each}
    acts[sys.argv[1]](sys.argv[2])
