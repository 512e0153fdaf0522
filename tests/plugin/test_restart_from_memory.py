"""A run whose trainer was killed goes on from the memory of its worker, and reads no disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from bt_lightning.localdir.held_images import held_dir
from bt_lightning.manage.run_status import run_status
from bt_lightning.path_layout import MANIFEST

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
SHARDED = Path(__file__).with_name("sharded_runs.py")
HELD = {"BT_HOLD_MEMORY_S": "60"}
KILLED = """
import json, os, signal, sys
import plugin_runs as runs
from bt_lightning import BTLightning
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from lightning.pytorch.callbacks import ModelCheckpoint
from pathlib import Path

root, stop = sys.argv[1], int(sys.argv[2]) or None
bt = BTLightning(dir=root)

def end():
    saver = bt._session.writer.saves.saver
    saver.finish_copy()
    for future, _, _ in list(saver.open.copies.values()):
        future.result()
    os.kill(os.getpid(), signal.SIGKILL)

save = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
run = runs.fit(root, callbacks=[bt, save], make=lambda: runs.Net(stop, end), max_epochs=1)
print("ended", json.dumps([run.first_step, run.outcome]))
"""


def wait_for(found: Any, what: str, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"no {what} in {seconds} s"
        time.sleep(0.02)
    return value


def records(root: Path) -> list[Path]:
    return [*held_dir(root).glob("[0-9]*.json")]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ended(done: Any) -> Any:
    return json.loads(done.out.partition("ended ")[2].splitlines()[0])


def went_on(done: Any, step: int, straight: Any) -> bool:
    """Whether it began at this step and ended as the run that nobody killed."""
    began, end = ended(done)
    return began == step and (OLD or end == straight)  # an old Lightning is not exact in an epoch


@pytest.fixture
def straight(scripts: Any, tmp_path: Path) -> Any:
    """The end of the run that nobody kills."""
    return ended(scripts.run(KILLED, tmp_path / "straight", 0))[1]


def test_the_next_start_reads_the_memory_of_the_worker(
    scripts: Any, tmp_path: Path, straight: Any
) -> None:
    root = tmp_path / "root"
    scripts.run(KILLED, root, 5, code=-signal.SIGKILL, env=HELD)
    (record,) = wait_for(lambda: records(root), "record")
    worker = json.loads(record.read_text())["pid"]
    done = scripts.run(KILLED, root, 0, env=HELD)
    assert "from the memory of the killed run's worker, 0 B from " in done.err
    assert went_on(done, 5, straight)
    wait_for(lambda: not lives(worker), "end of the worker")
    assert records(root) == []  # a run that ended well holds none


def test_without_its_worker_the_disk_is_read(scripts: Any, tmp_path: Path, straight: Any) -> None:
    root = tmp_path / "root"
    scripts.run(KILLED, root, 5, code=-signal.SIGKILL, env=HELD)
    (record,) = wait_for(lambda: records(root), "record")
    worker = json.loads(record.read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not lives(worker), "end of the worker")
    done = scripts.run(KILLED, root, 0, env=HELD)
    assert "from the memory" not in done.err
    assert went_on(done, 5, straight)
    assert records(root) == []


def test_the_memory_is_held_so_long_and_no_longer(scripts: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    scripts.run(KILLED, root, 5, code=-signal.SIGKILL, env={"BT_HOLD_MEMORY_S": "1"})
    wait_for(lambda: held_dir(root).is_dir(), "record")
    wait_for(lambda: not records(root), "end of the record")
    scripts.run(KILLED, tmp_path / "other", 5, code=-signal.SIGKILL, env={"BT_HOLD_MEMORY_S": "0"})
    assert not held_dir(tmp_path / "other").exists()


def test_of_a_checkpoint_that_only_the_store_has_nothing_is_fetched(
    scripts: Any, tmp_path: Path, straight: Any
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    env = {**HELD, "BT_STORE_URL": str(store), "BT_TRAINING_JOB_ID": "j"}
    scripts.run(KILLED, root, 5, code=-signal.SIGKILL, env=env)
    wait_for(lambda: records(root), "record")
    for checkpoint in [*root.glob(f"*/{MANIFEST}")]:
        shutil.rmtree(checkpoint.parent)
    for file in store.rglob("checkpoint-5/*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))  # whoever reads it does not take it
    done = scripts.run(KILLED, root, 0, env=env)
    assert went_on(done, 5, straight)


@pytest.mark.skipif(OLD, reason="Lightning before 2.6 resumes an epoch from its begin")
def test_ranks_read_the_parts_of_all_from_memory(scripts: Any, tmp_path: Path) -> None:
    common = {"kind": "fsdp", "bt": {"hold_memory": 600}, "root": str(tmp_path / "ck")}
    whole = {**common, "out": str(tmp_path / "whole"), "root": str(tmp_path / "other")}
    ends = {"stop_at": 5, "end": "kill", "there": "step=4"}
    killed = {**common, "out": str(tmp_path / "killed"), **ends}
    resumed = {**common, "out": str(tmp_path / "resumed"), "seed": 9}
    for job, code in ((whole, 0), (killed, -signal.SIGKILL), (resumed, 0)):
        path = Path(f"{job['out']}.json")
        path.write_text(json.dumps([job]))
        done = scripts.ranks(SHARDED, path, envs=[{}, {}])
        assert {process.code for process in done} == {code}, "\n".join(map(str, done))
        if code:
            wait_for(lambda: len(records(tmp_path / "ck")) == 2, "records of both workers")
            held = {one.checkpoint for one in run_status(tmp_path / "ck").held}
            assert held == {"step=4"}
    assert all("worker, 0 B from " in process.err for process in done)
    states = [torch.load(tmp_path / name / "state.pt") for name in ("whole", "resumed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert records(tmp_path / "ck") == []


def test_sigterm_ends_a_worker_that_holds_memory(scripts: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    scripts.run(KILLED, root, 5, code=-signal.SIGKILL, env=HELD)
    (record,) = wait_for(lambda: records(root), "record")
    worker = json.loads(record.read_text())["pid"]
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: not lives(worker), "end of the worker", 20)
    assert records(root) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_restarts_from_memory(scripts: Any, tmp_path: Path, straight: Any) -> None:
    """In half of them the worker is killed as well."""
    from_memory = 0
    for number in range(100):
        root = tmp_path / f"root-{number}"
        scripts.run(KILLED, root, 2 + number % 6, code=-signal.SIGKILL, env=HELD)
        (record,) = wait_for(lambda root=root: records(root), "record")
        if number % 2:
            os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
        done = scripts.run(KILLED, root, 0, env=HELD)
        assert went_on(done, 2 + number % 6, straight), number
        from_memory += "worker, 0 B from " in done.err
        assert records(root) == []
    assert from_memory == 50
