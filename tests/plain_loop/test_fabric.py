"""`Checkpointer` and `BTAsyncCheckpointIO` in scripts with Lightning's Fabric."""

from __future__ import annotations

import fcntl
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from bt_lightning import InvalidSettingError, UploadFailedError
from bt_lightning.fabric import BTAsyncCheckpointIO
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = pytest.mark.matrix

LOOP = Path(__file__).with_name("fabric_loop.py")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_loop_of_fabric_ends_as_one_that_was_not(
    run_ranks: Any, tmp_path: Path, ranks: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = run_ranks(LOOP, whole, 9, 0, ranks=ranks)
    run_ranks(LOOP, killed, 9, 5, ranks=ranks, code=-signal.SIGKILL)
    found = run_ranks(LOOP, killed, 9, 0, ranks=ranks)
    assert [said[0] for said in found] == ["began 5"] * ranks
    assert [said[1] for said in found] == [said[1] for said in wanted]
    weights = load_file(killed / "checkpoint-9" / "model.safetensors")
    assert "0.weight" in weights  # as the plain module names it


IO_LOOP = Path(__file__).with_name("fabric_io_loop.py")


def wait_for_worker(root: Path) -> None:
    """Until the worker of a run that was killed has published all, and is gone."""
    with (root / ".bt_lightning" / "worker.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.mark.parametrize(("ranks", "lost"), [(1, False), (1, True), (2, False), (2, True)])
def test_saves_of_fabric_are_committed_by_the_worker_and_resumed(
    run_ranks: Any, tmp_path: Path, ranks: int, lost: bool
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = run_ranks(IO_LOOP, whole, whole / "s", 9, 0, ranks=ranks)
    run_ranks(IO_LOOP, killed / "ck", killed / "s", 9, 5, ranks=ranks, code=-signal.SIGKILL)
    if lost:
        wait_for_worker(killed / "ck")
        shutil.rmtree(killed / "ck")
    found = run_ranks(IO_LOOP, killed / "ck", killed / "s", 9, 0, ranks=ranks)
    (began,) = {said[0] for said in found}
    assert began == "began 5"
    assert [said[1] for said in found] == [said[1] for said in wanted]
    for where in (killed / "ck", killed / "s"):
        there = {path.parent.name for path in where.rglob("bt_manifest.json")}
        # what the run resumed from stays, and what it could not ask to go before it
        assert {"checkpoint-8", "checkpoint-9"} <= there
        assert there <= {f"checkpoint-{n}" for n in (3, 4, 5, 8, 9)}
    assert verify(killed / "ck" / "checkpoint-9").step == 9
    saves = [event for event in read_events(killed / "ck") if event["event"] == "save"]
    assert {event["snapshot"] for event in saves} == {"lazy"}


def fabric_with(io: BTAsyncCheckpointIO) -> tuple[Fabric, dict[str, Any]]:
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[], plugins=[io])
    fabric.launch()
    plain = torch.nn.Linear(2, 1)
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), 0.1))
    return fabric, {"model": model, "optimizer": optimizer, "step": 4}


def test_outside_of_its_block_and_of_its_directory_it_is_synchronous(tmp_path: Path) -> None:
    io = BTAsyncCheckpointIO(tmp_path / "ck")
    fabric, state = fabric_with(io)
    fabric.save(tmp_path / "ck" / "before", state)
    assert verify(tmp_path / "ck" / "before").step == 4
    with io:
        assert io.latest == str(tmp_path / "ck" / "before")
        fabric.save(tmp_path / "else" / "where", state)
        assert verify(tmp_path / "else" / "where").step == 4
        fabric.save(tmp_path / "ck" / "inside", {**state, "step": 5})
        assert fabric.load(tmp_path / "ck" / "inside")["step"] == 5  # it waits for the save
    assert [one.manifest.step for one in list_committed(tmp_path / "ck")[0]] == [5, 4]


def test_a_store_that_refuses_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    io = BTAsyncCheckpointIO(tmp_path / "ck", (tmp_path / "store").as_uri())
    fabric, state = fabric_with(io)
    with pytest.raises((UploadFailedError, OSError)), io:
        fabric.save(io.root / "checkpoint-4", state)


@pytest.mark.parametrize("wrong", [{"grace": 5}, {"resume": "weights"}, {"nonsense": 1}])
def test_arguments_that_fabric_cannot_use_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettingError, match=next(iter(wrong))):
        BTAsyncCheckpointIO(**wrong)


def test_latest_says_how_to_open_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="with io"):
        _ = BTAsyncCheckpointIO(tmp_path).latest
