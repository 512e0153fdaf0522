"""Runs of DeepSpeed's engine, on the CPU: files of ranks are committed as one, and resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.timeout(900)

SCRIPT = Path(__file__).with_name("deepspeed_runs.py")
KILLED = -9


def job(tmp_path: Path, name: str, stage: int = 2, **more: Any) -> dict[str, Any]:
    return {"out": str(tmp_path / name), "root": str(tmp_path / "ck"), "stage": stage, **more}


def run(
    scripts: Any,
    jobs: list[dict[str, Any]],
    ranks: int = 2,
    codes: Any = (0,),
    device: str = "cpu",
) -> list[Any]:
    path = Path(f"{jobs[0]['out']}.jobs.json")
    path.write_text(json.dumps(jobs))
    done = scripts.ranks(SCRIPT, path, envs=[{"DS_ACCELERATOR": device}] * ranks, timeout=400)
    assert {process.code for process in done} <= set(codes), "\n".join(map(str, done))
    return done


def said(one: dict[str, Any], ranks: int = 2) -> list[dict[str, Any]]:
    out = Path(one["out"])
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]


def steps(root: Path) -> list[int]:
    return sorted(one.manifest.step for one in list_committed(root.resolve(), foreign=False)[0])


def assert_equal(
    resumed: dict[str, Any], whole: dict[str, Any], first: int, ranks: int = 2
) -> None:
    wanted, found = said(whole, ranks), said(resumed, ranks)
    assert {one["first"] for one in found} == {first}
    for rank in range(ranks):
        for key in ("digest", "step", "lr", "draw"):
            assert found[rank][key] == wanted[rank][key], (rank, key)
        assert found[rank]["trained"] == wanted[rank]["trained"][first:]


CASES = {
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3},
    "2 in bf16": {"stage": 2, "precision": "bf16-true"},
    "3 with frozen weights": {"stage": 3, "frozen": True},
}


def test_killed_runs_go_on_to_the_very_state_of_uninterrupted_ones(
    scripts: Any, tmp_path: Path
) -> None:
    whole = [
        job(tmp_path, f"whole {case}", **words, root=str(tmp_path / f"other {case}"))
        for case, words in CASES.items()
    ]
    run(scripts, whole)
    resumed = []
    for case, words in CASES.items():
        root = tmp_path / f"ck {case}"
        ends = {"stop_at": 5, "there": "step=4", "root": str(root)}
        run(scripts, [job(tmp_path, f"killed {case}", **words, **ends)], codes=(KILLED,))
        assert steps(root) == [2, 4]
        resumed.append(job(tmp_path, f"resumed {case}", **words, root=str(root), seed=9))
    run(scripts, resumed)
    for one, other in zip(resumed, whole, strict=True):
        assert_equal(one, other, first=4)


def test_a_save_that_a_rank_dies_in_is_none(scripts: Any, tmp_path: Path) -> None:
    """DeepSpeed's own folder would be half a checkpoint then."""
    whole = job(tmp_path, "whole", root=str(tmp_path / "other"))
    run(scripts, [whole])
    dying = job(tmp_path, "dying", dies_in=4, dying=1, there="step=2", trainer={"max_steps": 8})
    done = run(scripts, [dying], codes=(KILLED, 1))
    assert KILLED in {process.code for process in done}
    assert steps(tmp_path / "ck") == [2]
    resumed = job(tmp_path, "resumed")
    run(scripts, [resumed])
    assert_equal(resumed, whole, first=2)
    for one in list_committed((tmp_path / "ck").resolve(), foreign=False)[0]:
        verify(one.path)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_lost_disk_comes_back_from_the_store(scripts: Any, tmp_path: Path, stage: int) -> None:
    bt = {"store": f"file://{tmp_path}/store", "project": "p", "job": "j"}
    whole = job(tmp_path, "whole", stage, root=str(tmp_path / "other"))
    run(scripts, [whole])
    first = job(tmp_path, "first", stage, bt=bt, epochs=1, trainer={"max_steps": 4})
    run(scripts, [first])
    shutil.rmtree(tmp_path / "ck")
    resumed = job(tmp_path, "resumed", stage, bt=bt)
    run(scripts, [resumed])
    assert_equal(resumed, whole, first=4)


def test_a_damaged_checkpoint_is_passed_over(scripts: Any, tmp_path: Path) -> None:
    first = job(tmp_path, "first", bt={"save_at_end": False}, trainer={"max_steps": 4})
    run(scripts, [first])
    file = next((tmp_path / "ck" / "step=4" / "checkpoint").glob("*pp_rank_1*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    resumed = job(tmp_path, "resumed")
    run(scripts, [resumed])
    assert {one["first"] for one in said(resumed)} == {2}


@pytest.mark.parametrize("stage", [1, 3])
def test_stock_lightning_resumes_from_ours_and_we_from_its_own(
    scripts: Any, tmp_path: Path, stage: int
) -> None:
    ours = job(tmp_path, "ours", stage, trainer={"max_steps": 4})
    run(scripts, [ours])
    path = str(tmp_path / "ck" / "step=4")
    stock = job(
        tmp_path, "stock", stage, stock=True, ckpt_path=path, root=str(tmp_path / "stock-ck")
    )
    run(scripts, [stock])
    assert {one["first"] for one in said(stock)} == {4}
    theirs = next((tmp_path / "stock-ck").rglob("*step=8*"))
    back = job(tmp_path, "back", stage, ckpt_path=str(theirs), root=str(tmp_path / "back-ck"))
    run(scripts, [back])
    assert {one["first"] for one in said(back)} == {8}


def test_the_best_one_is_validated_and_the_others_are_removed(scripts: Any, tmp_path: Path) -> None:
    save = {"monitor": "val", "save_top_k": 1, "every_n_train_steps": None, "filename": "{epoch}"}
    one = job(tmp_path, "one", save=save, validates=True, bt={"save_at_end": False})
    run(scripts, [one])
    assert len(steps(tmp_path / "ck")) == 1
    for rank in range(2):
        found = json.loads((tmp_path / "one" / f"validated-{rank}.json").read_text())
        assert found[0]["val"] > 0


def test_what_cannot_be_resumed_is_refused_by_name(scripts: Any, tmp_path: Path) -> None:
    first = job(tmp_path, "first", trainer={"max_steps": 2})
    run(scripts, [first])
    alone = run(scripts, [job(tmp_path, "alone")], ranks=1, codes=(1,))
    assert "is of 2 ranks, and this run has 1: DeepSpeed cannot divide" in alone[0].err
    ddp = run(scripts, [job(tmp_path, "ddp", ddp=True)], codes=(1,))
    assert "was saved by DeepSpeed's engine, and this strategy cannot read it" in ddp[0].err


def test_the_command_line_takes_it_as_one(scripts: Any, tmp_path: Path) -> None:
    first = job(tmp_path, "first", 3, trainer={"max_steps": 2})
    run(scripts, [first])
    path = tmp_path / "ck" / "step=2"

    def told(*words: str) -> str:
        command = [sys.executable, "-m", "bt_lightning", "checkpoints", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "deepspeed" in told("list", str(tmp_path / "ck"), "-o", "json")
    assert "step=2" in told("show", str(path))
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt" in told("files", str(path))
    told("verify", str(path))
    told("diff", str(path), str(path))
    told("download", "step=2", "--dir", str(path.parent), "--target-directory", f"{tmp_path}/copy")
    assert {p.name for p in (tmp_path / "copy").rglob("*_states.pt")} == {
        p.name for p in path.rglob("*_states.pt")
    }


def test_nothing_is_unpickled_that_deepspeed_did_not_save(scripts: Any, tmp_path: Path) -> None:
    """A class of a file's own choice would run code."""
    first = job(tmp_path, "first", trainer={"max_steps": 2}, epochs=1)
    run(scripts, [first])
    folder = tmp_path / "foreign"
    shutil.copytree(tmp_path / "ck" / "step=2", folder)
    (folder / "bt_manifest.json").unlink()
    file = folder / "checkpoint" / "mp_rank_00_model_states.pt"
    state = torch.load(file, weights_only=False)
    torch.save({**state, "odd": Path}, file)
    words = {"ckpt_path": str(folder), "root": str(tmp_path / "new")}
    refused = run(scripts, [job(tmp_path, "refused", **words)], codes=(1,))
    assert "UnsafeLoadError" in refused[0].err
    run(scripts, [job(tmp_path, "taken", bt={"weights_only": False}, **words)])


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_on_a_device_goes_on(scripts: Any, tmp_path: Path, stage: int) -> None:
    """With Lightning's own strategy, NCCL and bf16; one rank."""
    words = {"precision": "bf16-mixed"}
    whole = job(tmp_path, "whole", stage, **words, root=str(tmp_path / "other"))
    run(scripts, [whole], device="cuda", ranks=1)
    killed = job(tmp_path, "killed", stage, **words, stop_at=5, there="step=4")
    run(scripts, [killed], device="cuda", ranks=1, codes=(KILLED,))
    resumed = job(tmp_path, "resumed", stage, **words, seed=9)
    run(scripts, [resumed], device="cuda", ranks=1)
    assert_equal(resumed, whole, first=4, ranks=1)


def test_nodes_with_disks_of_their_own_resume_from_the_store(scripts: Any, tmp_path: Path) -> None:
    there, disks = tmp_path / "disk", [tmp_path / f"disk-{node}" for node in range(2)]
    for folder in (there, *disks):
        folder.mkdir()

    def on_nodes(one: dict[str, Any], codes: Any = (0,)) -> None:
        path = Path(f"{one['out']}.jobs.json")
        path.write_text(json.dumps([one]))
        envs = [
            {"DS_ACCELERATOR": "cpu", "BT_NODE_RANK": str(node), "BT_GROUP_SIZE": "2"}
            for node in range(2)
        ]
        done = scripts.ranks(SCRIPT, path, envs=envs, disks=(there, disks), timeout=400)
        assert {process.code for process in done} <= set(codes), "\n".join(map(str, done))

    bt = {"store": f"file://{tmp_path}/store", "project": "p", "job": "j"}
    whole = job(tmp_path, "whole", 3, root=str(tmp_path / "other"))
    run(scripts, [whole])
    words = {"root": str(there / "ck"), "bt": bt}
    on_nodes(job(tmp_path, "first", 3, epochs=1, trainer={"max_steps": 4}, **words))
    shutil.rmtree(disks[1] / "ck")
    resumed = job(tmp_path, "resumed", 3, **words)
    on_nodes(resumed)
    assert_equal(resumed, whole, first=4)
    for disk in disks:
        assert not list((disk / "ck").rglob("*_states.pt")) or not steps(disk / "ck")
