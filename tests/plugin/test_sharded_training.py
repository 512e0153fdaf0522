"""Runs whose ranks hold parts of the model: saved by all, committed as one, resumed anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

pytestmark = pytest.mark.timeout(300)

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


@pytest.mark.parametrize("kind", list(MESHES))
def test_a_killed_run_goes_on_to_the_very_state_of_the_uninterrupted_one(
    scripts: Any, tmp_path: Path, kind: str
) -> None:
    ranks, more = MESHES[kind]
    whole = job(tmp_path, "whole", kind, **more, root=str(tmp_path / "other"))
    run(scripts, [whole], ranks)
    killed = job(tmp_path, "killed", kind, **more, stop_at=5, end="kill")
    run(scripts, [killed], ranks, codes=(KILLED,))
    resumed = job(tmp_path, "resumed", kind, **more, seed=9)
    run(scripts, [resumed], ranks)
    wanted, found = said(whole, ranks), said(resumed, ranks)
    assert {one["first"] for one in found} <= {2, 4}
    for rank in range(ranks):
        first = found[rank]["first"]
        for key in ("digest", "step", "lr", "draw"):
            assert found[rank][key] == wanted[rank][key], (rank, key)
        assert found[rank]["trained"] == wanted[rank]["trained"][first:]
