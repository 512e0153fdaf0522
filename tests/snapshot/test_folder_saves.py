"""Folders of given files through the arena and the worker: of one step, whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
import zipfile

import pytest
import safetensors.torch
import torch

from bt_lightning.errors import TornSnapshotError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.manifest import Manifest
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile

pytestmark = pytest.mark.matrix

MAKERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.5),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.5, fused=True),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, lr=0.5),
    "none": lambda weights: torch.optim.SGD(weights, lr=0.5),
}


class Training:
    """A model, its optimizer and its schedule, saved as the Trainer of `transformers` does."""

    def __init__(self, module, make) -> None:
        self.module = module
        self.optimizer = make(module.parameters())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: 1 / (s + 1))
        self.writer = FolderWriter()
        self.count = 0

    def step(self):
        self.module(torch.zeros(1))
        for weight in self.module.parameters():
            weight.grad = torch.full_like(weight, -random.random())
        self.optimizer.step()
        self.schedule.step()
        self.count += 1

    def folder(self, **more):
        return Folder(
            files={
                "model.safetensors": SafetensorsFile(self.module.state_dict()),
                "optimizer.pt": TorchFile(self.optimizer.state_dict()),
                "scheduler.pt": TorchFile(self.schedule.state_dict()),
                "rng_state.pth": TorchFile({"cpu": torch.get_rng_state(), "python": [1, (2.5,)]}),
                "trainer_state.json": json.dumps({"global_step": self.count}).encode(),
                **more,
            },
            step=self.count,
            origin={"format": "hf-trainer"},
        )

    def save(self, saving, name, **more):
        folder = self.folder(**more)
        return saving.saver.save(
            name,
            lambda cache: self.writer.take(folder, cache),
            lambda snapshot: self.writer.facts(folder, snapshot),
        )

    def wanted(self):
        return copy.deepcopy(
            [self.module.state_dict(), self.optimizer.state_dict(), self.schedule.state_dict()]
        )


def found(folder):
    """What `transformers` reads from a committed folder, verified."""
    verify(folder)
    for file in folder.glob("*.pt*"):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
    return [
        safetensors.torch.load_file(folder / "model.safetensors"),
        torch.load(folder / "optimizer.pt", weights_only=True, mmap=True),
        torch.load(folder / "scheduler.pt", weights_only=True),
    ]


def assert_same(one, other):
    weights, *states = one
    torch.testing.assert_close(weights, dict(other[0]), rtol=0, atol=0)
    for state, wanted in zip(states, other[1:], strict=True):
        assert list(state) == list(wanted)
        torch.testing.assert_close(state, wanted, rtol=0, atol=0)


@pytest.fixture
def training(counting):
    def make(kind="adamw"):
        training = Training(counting, MAKERS[kind])
        training.step()
        return training

    return make


@pytest.mark.parametrize("snapshot", ["lazy", "eager"])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_folder_is_of_one_step(saving, training, snapshot, kind):
    made = training(kind)
    saver = saving([made.optimizer], snapshot=snapshot)
    chance = random.Random(3)
    for _ in range(12):
        wanted = made.wanted()
        made.save(saver, "checkpoint-1")
        for _ in range(chance.randint(0, 3)):
            made.step()
        ((record, manifest),) = saver.outcomes()
        assert isinstance(manifest, Manifest), manifest
        assert record.snapshot in {snapshot, "shared"}
        assert manifest.origin["format"] == "hf-trainer"
        assert_same(found(saver.root / "checkpoint-1"), wanted)
        saver.saver.state_may_change()
        made.step()


@pytest.mark.parametrize("part", ["a weight", "a moment"])
def test_a_tensor_that_changes_while_it_is_copied_is_found(saving, training, slow_copies, part):
    made = training()
    saver = saving([made.optimizer], snapshot="lazy")
    made.save(saver, "checkpoint-1")
    saver.outcomes()
    made.step()
    weight = made.module.weights[0]
    with slow_copies():
        made.save(saver, "checkpoint-2")
        with torch.no_grad():
            (weight if part == "a weight" else made.optimizer.state[weight]["exp_avg"]).mul_(2)
    ((_, error),) = saver.outcomes()
    assert isinstance(error, TornSnapshotError)
    assert {path.name for path in saver.root.glob("checkpoint-*")} == {"checkpoint-1"}
    made.save(saver, "checkpoint-3")
    wanted = made.wanted()
    saver.outcomes()
    assert_same(found(saver.root / "checkpoint-3"), wanted)


def test_a_second_save_of_the_same_moment_shares_the_bytes(saving, training):
    made = training()
    saver = saving([made.optimizer])
    wanted = made.wanted()
    made.save(saver, "checkpoint-1")
    record = made.save(saver, "last", **{"trainer_state.json": b"{}"})
    assert record.snapshot == "shared"
    saver.outcomes()
    for name in ("checkpoint-1", "last"):
        assert_same(found(saver.root / name), wanted)
    for file in ("model.safetensors", "optimizer.pt"):
        inodes = {(saver.root / name / file).stat().st_ino for name in ("checkpoint-1", "last")}
        assert len(inodes) == 1


def test_another_number_in_the_state_is_not_shared(saving, training):
    """The tensors are the same, the pickle is not."""
    made = training()
    saver = saving([made.optimizer])
    made.save(saver, "checkpoint-1")
    made.optimizer.param_groups[0]["lr"] = 0.125
    record = made.save(saver, "last")
    assert record.snapshot != "shared"
    saver.outcomes()
    for name, lr in (("checkpoint-1", 0.25), ("last", 0.125)):
        _, state, _ = found(saver.root / name)
        assert state["param_groups"][0]["lr"] == lr


def test_two_arenas_in_turn_hold_whole_files_each_time(saving, training):
    made = training()
    saver = saving([made.optimizer], overlap="latest", arenas=2)
    wanted = {}
    for _ in range(8):
        name = f"checkpoint-{made.count}"
        wanted[name] = made.wanted()
        made.save(saver, name)
        made.step()
    outcomes = saver.outcomes()
    committed = [record.checkpoint_id for record, what in outcomes if isinstance(what, Manifest)]
    assert len(committed) >= 2
    for name in committed:
        assert_same(found(saver.root / name), wanted[name])


def test_a_worker_killed_at_any_moment_leaves_no_partial_folder(saving, training):
    made = training()
    saver = saving([made.optimizer])
    chance, names = random.Random(11), []
    for _ in range(12):
        made.step()
        names.append(f"checkpoint-{made.count}")
        wanted = made.wanted()
        made.save(saver, names[-1])
        saver.saver.finish_copy()
        threading.Event().wait(chance.random() * 0.03)
        os.kill(saver.worker.pid, signal.SIGKILL)
        for seen in saver.root.glob("checkpoint-*"):
            verify(seen)
        ((_, manifest),) = saver.outcomes()
        assert isinstance(manifest, Manifest), manifest
        assert_same(found(saver.root / names[-1]), wanted)
    listed = list_committed(saver.root)[0]
    assert {one.manifest.checkpoint_id for one in listed} == set(names)


def test_without_memory_for_an_arena_the_files_are_the_same(saving, training, tmp_path):
    made = training()
    saver = saving([made.optimizer])
    made.save(saver, "checkpoint-1")
    saver.outcomes()
    made.writer.save(made.folder(), tmp_path / "alone" / "checkpoint-1", tmp_path / "alone")
    for file in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        there = (tmp_path / "alone" / "checkpoint-1" / file).read_bytes()
        assert (saver.root / "checkpoint-1" / file).read_bytes() == there, file
