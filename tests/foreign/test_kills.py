"""The program that writes is killed at random, and the worker too: nothing partial shows."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from tests.foreign import trainer_writes as writes

SCRIPT = Path(writes.__file__)
FULL = {
    *("config.json", "model.safetensors", "training_args.bin", "optimizer.pt"),
    *("scheduler.pt", "rng_state.pth", "trainer_state.json"),
}


def check_disk(scene, full=FULL):
    """What is listed on the disk has all files of a save, with the bytes that its digests say."""
    for one in list_committed(scene.root).found:
        assert {entry.path for entry in one.manifest.files} == full
        try:
            verify(one.path)
        except CheckpointNotFoundError:
            continue  # the program has replaced or deleted it since
        except CheckpointCorruptError:
            assert one not in list_committed(scene.root).found, "it changed and is still listed"


def check_store(scene, is_whole):
    """What the store offers is a save of one run, to the byte; what it deletes meanwhile is not."""
    for folder, data in list_job(LocalStore(scene.folder), scene.prefix).committed.items():
        manifest = Manifest.from_bytes(data, folder)
        there = scene.folder / scene.prefix / folder
        try:
            whole = is_whole(there, manifest)
        except OSError:
            whole = False
        assert whole or not (there / MANIFEST).exists(), folder


def is_whole(there, manifest):
    """Of the fast writer."""
    assert {entry.path for entry in manifest.files} == FULL
    return writes.is_whole(there, manifest.step)


def torture(scene, kills, seed):
    """Kill the writer `kills` times, the worker at every fifth, and wipe the disk at two."""
    draw = random.Random(seed)
    published = set()
    worker = begun(scene)
    for number in range(kills):
        if number in {kills // 3, 2 * kills // 3}:
            worker.kill()
            shutil.rmtree(scene.root)
            scene.root.mkdir()
            worker = begun(scene)
        command = [sys.executable, "-S", str(SCRIPT), str(scene.root), str(draw.random())[2:]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "begins\n"
            until = time.monotonic() + draw.random() * draw.choice((0.05, 0.3, 3.5))
            while time.monotonic() < until:
                check_disk(scene)
                threading.Event().wait(0.02)
            os.kill(writer.pid, signal.SIGKILL)
        if number % 5 == 4:
            worker.kill()
            worker = begun(scene)
        check_disk(scene)
        check_store(scene, is_whole)
        published |= scene.in_store()
    worker.drain(60)
    check_disk(scene)
    check_store(scene, is_whole)
    assert published | scene.in_store(), "nothing was published at all"
    whole = [step for step in writes.steps(scene.root) if f"checkpoint-{step}" in scene.on_disk()]
    assert {f"checkpoint-{step}" for step in whole} <= {
        Manifest.from_bytes(data, "").checkpoint_id
        for data in list_job(LocalStore(scene.folder), scene.prefix).committed.values()
    }
    worker.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_trainer_is_killed_and_saves_over_what_it_left(scene):
    pytest.importorskip("transformers")
    full = {*FULL, "generation_config.json"}
    worker = begun(scene)
    script = SCRIPT.with_name("killed_trainer.py")
    command = [sys.executable, str(script), str(scene.root), "12", "5"]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as trainer:
        while line := trainer.stdout.readline():
            if line.startswith("killed"):
                check_disk(scene, full)
                check_store(scene, is_of_one_run)
        assert trainer.wait(60) == 0
    worker.drain(60)
    assert scene.in_store()
    worker.stop()


def is_of_one_run(folder, manifest):
    """Of the real Trainer: the state of the optimizer is of the step that the Trainer says."""
    import torch

    assert {entry.path for entry in manifest.files} == {*FULL, "generation_config.json"}
    torch.load(folder / "training_args.bin", weights_only=False)
    state = json.loads((folder / "trainer_state.json").read_text())
    optimizer = torch.load(folder / "optimizer.pt", weights_only=False)
    steps = {int(one["step"]) for one in optimizer["state"].values()}
    return state["global_step"] == manifest.step and steps == {manifest.step}


def begun(scene):
    worker = scene.worker(files=Patterns(), standby=True, drain_s=60)
    worker.start()
    worker.begin(frozenset())
    return worker


def test_ten_kills(scene):
    torture(scene, 10, 3)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_kills(scene, seed):
    torture(scene, 50, seed)
