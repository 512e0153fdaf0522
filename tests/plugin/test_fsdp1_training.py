"""Runs of Lightning's FSDPStrategy: saved by all ranks, resumed bit-equal, and on one rank."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.matrix

SCRIPT = Path(__file__).with_name("sharded_runs.py")
OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
KILLED = -9


def run(scripts: Any, one: dict[str, Any], ranks: int, codes: Any = (0,)) -> list[dict[str, Any]]:
    out = Path(one["out"])
    path = Path(f"{out}.jobs.json")
    path.write_text(json.dumps([one]))
    done = scripts.ranks(SCRIPT, path, envs=[{}] * ranks, timeout=100)
    assert {process.code for process in done} <= set(codes), "\n".join(map(str, done))
    told = [out / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(each.read_text()) for each in told if each.exists()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["sharded", "full"])
def test_a_killed_run_goes_on_to_the_very_state(scripts: Any, tmp_path: Path, form: str) -> None:
    def job(name: str, root: str = "ck", **more: Any) -> dict[str, Any]:
        where = {"out": str(tmp_path / name), "root": str(tmp_path / root)}
        # Lightning before 2.6 does not step the scheduler of a resumed epoch
        return {**where, "kind": "fsdp1", "dict": form, "dropout": 0.3, "constant": OLD, **more}

    wanted = run(scripts, job("whole", "other"), 2)
    killed = job("killed", stop_at=5, end="kill", there="step=4")
    run(scripts, killed, 2, codes=(KILLED,))
    found = run(scripts, job("resumed", seed=9), 2)
    for mine, other in zip(found, wanted, strict=True):
        assert mine["first"] == 4
        for key in ("digest", "step", "lr", "draw"):
            assert mine[key] == other[key], key
        assert mine["trained"] == other["trained"][4:]
    (alone,) = run(scripts, job("alone", kind="single", batch=8, epochs=3, seed=9), 1)
    assert alone["first"] == 12


@pytest.mark.timeout(300)
def test_ranks_that_train_nothing_of_the_flat_parameters_save_with_the_others(
    scripts: Any, tmp_path: Path
) -> None:
    """As with a frozen base and adapters: one rank's optimizer never has a state."""
    where = {"root": str(tmp_path / "ck"), "kind": "fsdp1", "dict": "sharded", "frozen": True}
    first = {**where, "out": str(tmp_path / "first"), "epochs": 1, "constant": True}
    wanted = run(scripts, first, 2)
    assert [one["step"] for one in wanted] == [6, 6]
    found = run(scripts, {**first, "out": str(tmp_path / "again"), "epochs": 2}, 2)
    assert [(one["first"], one["step"]) for one in found] == [(6, 12)] * 2
