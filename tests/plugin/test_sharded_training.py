"""Runs whose ranks hold parts of the model: saved by all, committed as one, resumed anywhere."""

from __future__ import annotations

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 does not step the epoch-interval scheduler of a resumed epoch"
)

SCRIPT = Path(__file__).with_name("sharded_runs.py")
KILLED = -9


def job(tmp_path: Path, name: str, kind: str = "fsdp", **more: Any) -> dict[str, Any]:
    return {"out": str(tmp_path / name), "root": str(tmp_path / "ck"), "kind": kind, **more}


def run(scripts: Any, jobs: list[dict[str, Any]], ranks: int, codes: Any = (0,)) -> list[Any]:
    path = Path(f"{jobs[0]['out']}.jobs.json")
    path.write_text(json.dumps(jobs))
    done = scripts.ranks(SCRIPT, path, envs=[{}] * ranks, timeout=100)
    assert {process.code for process in done} <= set(codes), "\n".join(map(str, done))
    return done


def said(one: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    out = Path(one["out"])
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]


def state(one: dict[str, Any], name: str = "state.pt") -> dict[str, torch.Tensor]:
    return torch.load(Path(one["out"]) / name)


def steps(root: Path) -> list[int]:
    return sorted(one.manifest.step for one in list_committed(root.resolve(), foreign=False)[0])


MESHES: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp": (2, {"dropout": 0.3}),
    "mesh": (4, {"dp": 2, "tp": 2}),
    "hsdp": (4, {"dropout": 0.3}),
}


@needs_26
@pytest.mark.parametrize("kind", list(MESHES))
def test_a_killed_run_goes_on_to_the_very_state_of_the_uninterrupted_one(
    scripts: Any, tmp_path: Path, kind: str
) -> None:
    ranks, more = MESHES[kind]
    whole = job(tmp_path, "whole", kind, **more, root=str(tmp_path / "other"))
    run(scripts, [whole], ranks)
    ends = {"stop_at": 5, "end": "kill", "there": "step=4"}
    killed = job(tmp_path, "killed", kind, **more, **ends)
    run(scripts, [killed], ranks, codes=(KILLED,))
    resumed = job(tmp_path, "resumed", kind, **more, seed=9)
    run(scripts, [resumed], ranks)
    wanted, found = said(whole, ranks), said(resumed, ranks)
    assert {one["first"] for one in found} == {4}
    for rank in range(ranks):
        for key in ("digest", "step", "lr", "draw"):
            assert found[rank][key] == wanted[rank][key], (rank, key)
        assert found[rank]["trained"] == wanted[rank]["trained"][4:]


def test_a_save_whose_hook_fails_on_one_rank_is_counted_by_all(
    scripts: Any, tmp_path: Path
) -> None:
    one = job(tmp_path, "one", odd_at=3, epochs=1)
    run(scripts, [one], 2)
    errors = [(tmp_path / "one" / f"odd-{rank}").read_text() for rank in range(2)]
    assert errors[1] == "OSError: the reader is gone"
    assert errors[0].startswith("PartsMissingError")
    assert "has no part of it: OSError: the reader is gone" in errors[0]
    assert steps(tmp_path / "ck") == [2, 4, 6]
    assert {each["step"] for each in said(one, 2)} == {6}


def test_a_run_goes_on_from_four_ranks_on_two_on_one_and_on_three(
    scripts: Any, tmp_path: Path
) -> None:
    """The whole state is equal bit by bit; in the middle of an epoch no sample is lost."""
    ends = {"stop_at": 3, "end": "kill", "there": "step=2"}
    first = job(tmp_path, "4", "mesh", dp=2, tp=2, batch=6, dump_at=2, **ends)
    run(scripts, [first], 4, codes=(KILLED,))
    before = state(first, "at.pt")
    for epochs, (ranks, kind, batch) in enumerate(
        [(2, "fsdp", 6), (1, "single", 12), (3, "fsdp", 4)], 1
    ):
        one = job(tmp_path, f"{ranks}", kind, batch=batch, epochs=epochs, loaded=True, seed=9)
        run(scripts, [one], ranks)
        loaded = state(one, "loaded.pt")
        assert loaded.keys() == before.keys()
        for name, value in before.items():
            assert torch.equal(loaded[name], value), (ranks, name)
        before, told = state(one), said(one, ranks)
        if OLD:  # it repeats a batch of an epoch in whose middle a run was resumed
            continue
        assert [each["first"] for each in told] == [max(2, 4 * (epochs - 1))] * ranks
        samples = [each for rank in told for _, some in rank["trained"] for each in some]
        assert len(samples) == len(set(samples)) == (24 if epochs == 1 else 48)


def test_saves_are_kept_and_removed_by_their_metric_and_run_no_collective(
    scripts: Any, tmp_path: Path
) -> None:
    """Each follows a validation, which leaves FSDP2's modules unsharded; paths elsewhere work."""
    save = {"monitor": "val", "save_top_k": 1, "every_n_train_steps": None, "filename": "{epoch}"}
    one = job(
        tmp_path,
        "one",
        save=save,
        validates=True,
        count=True,
        elsewhere_at=3,
        bt={"save_at_end": False},
    )
    run(scripts, [one], 2)
    told = said(one, 2)
    ours = [0, 0]
    for rank in told:
        assert sorted(rank["collectives"])[:-1] == ours, "but for the save elsewhere"
        assert max(rank["collectives"]) > 0
    kept = list_committed((tmp_path / "ck").resolve(), foreign=False)[0]
    assert len(kept) == 1
    assert (Path(one["out"]) / "elsewhere.ckpt" / "meta.pt").is_file()
    best = json.loads((Path(one["out"]) / "validated-0.json").read_text())
    assert best[0]["val"] == pytest.approx(kept[0].manifest.metrics["val"])


def test_sigterm_saves_one_state_on_all_ranks_and_the_next_start_goes_on(
    scripts: Any, tmp_path: Path
) -> None:
    save = {"every_n_train_steps": 100}
    more = {"save": save, "bt": {"grace": 60}, "epochs": 100}
    told = job(tmp_path, "told", stop_at=3, end="term", **more)
    done = run(scripts, [told], 2, codes=(143, 0))
    assert [process.code for process in done] == [143, 0]
    (step,) = steps(tmp_path / "ck")
    assert 3 <= step < 600
    resumed = job(tmp_path, "resumed", **more, trainer={"max_steps": step + 1})
    run(scripts, [resumed], 2)
    assert [one["first"] for one in said(resumed, 2)] == [step, step]


@pytest.mark.parametrize(
    ("dying", "dies"), [(0, "before it saves"), (1, "before it saves"), (1, "in the call")]
)
def test_a_rank_that_dies_leaves_its_save_uncommitted_and_the_run_goes_on_from_the_one_before(
    scripts: Any, tmp_path: Path, dying: int, dies: str
) -> None:
    """The other rank, whose part waits for that one's, ends soon."""
    one = job(tmp_path, "dying", dies_at=4, dies=dies, dying=dying, there="step=2")
    done = run(scripts, [one], 2, codes=(KILLED, 1))
    assert done[dying].code == KILLED
    assert time.time() - (tmp_path / "dying" / "died").stat().st_mtime < 45, "of 60 s for parts"
    assert steps(tmp_path / "ck") == [2]
    resumed = job(tmp_path, "resumed")
    run(scripts, [resumed], 2)
    assert [one["first"] for one in said(resumed, 2)] == [2, 2]
    assert steps(tmp_path / "ck") == [2, 4, 6, 8, 10, 12]


def test_a_worker_that_dies_while_its_rank_waits_for_rank_0_is_started_again(
    scripts: Any, tmp_path: Path
) -> None:
    """Rank 0 waits for the last save, of which the part of rank 1 is not written yet."""
    one = job(tmp_path, "one", worker_stops_at=6, dying=1, there="step=4", epochs=1)
    run(scripts, [one], 2)
    assert steps(tmp_path / "ck") == [2, 4, 6]
    assert [each["step"] for each in said(one, 2)] == [6, 6]


def test_a_run_begins_from_the_weights_of_another_job_from_a_path_or_from_the_one_before(
    scripts: Any, tmp_path: Path
) -> None:
    first = job(tmp_path, "first", epochs=1)
    earlier = str(tmp_path / "ck")
    warm = job(
        tmp_path,
        "warm",
        epochs=1,
        root=str(tmp_path / "warm-ck"),
        loaded=True,
        bt={"load_dir": earlier, "resume": "weights"},
    )
    named = {"ckpt_path": f"{earlier}/step=4", "root": str(tmp_path / "named-ck")}
    other = job(tmp_path, "other", epochs=1, **named)
    run(scripts, [first, warm, other], 2)
    weights, loaded = state(first), state(warm, "loaded.pt")
    assert loaded.keys() == {name for name in weights if name.startswith("state_dict.")}
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert [one["first"] for one in said(warm, 2)] == [0, 0]
    assert said(warm, 2)[0]["seen"] == ["DTensor", "Tensor"]
    assert [one["first"] for one in said(other, 2)] == [4, 4]

    shard = tmp_path / "ck" / "step=6" / "shard-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    again = job(tmp_path, "again", epochs=2)
    run(scripts, [again], 2)
    assert [one["first"] for one in said(again, 2)] == [4, 4]
    text = f"""
        import sys
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        import torch
        from sharded_runs import Net
        module = Net.load_from_checkpoint({earlier + "/step=12"!r}, job={{"kind": "single"}})
        whole = torch.load({str(tmp_path / "again" / "state.pt")!r})
        for name, value in module.state_dict().items():
            assert torch.equal(value, whole["state_dict." + name]), name
    """
    scripts.run(text)


def test_a_run_whose_disk_is_lost_goes_on_from_the_store(scripts: Any, tmp_path: Path) -> None:
    there = {"bt": {"store": (tmp_path / "store").as_uri(), "project": "p", "job": "j"}}
    run(scripts, [job(tmp_path, "first", epochs=1, **there)], 2)
    shutil.rmtree(tmp_path / "ck")
    again = job(tmp_path, "again", epochs=2, **there)
    named = {"ckpt_path": "bt://p@j/step=4", "root": str(tmp_path / "other"), **there}
    named["bt"] = {**there["bt"], "job": "k"}
    run(scripts, [again, job(tmp_path, "named", epochs=1, **named)], 2)
    assert [one["first"] for one in said(again, 2)] == [6, 6]
    assert [one["first"] for one in said(job(tmp_path, "named"), 2)] == [4, 4]


@pytest.mark.parametrize("overlap", ["skip", "latest"])
def test_what_rank_0_skips_or_replaces_is_no_failure_of_any_rank(
    scripts: Any, tmp_path: Path, overlap: str
) -> None:
    often = {"every_n_train_steps": 1}
    one = job(tmp_path, "one", save=often, bt={"overlap": overlap})
    run(scripts, [one], 2)
    found = list_committed((tmp_path / "ck").resolve(), foreign=False)[0]
    assert max(one.manifest.step for one in found) == 12, "the end of the fit is saved"
    for each in found:
        verify(each.path)
