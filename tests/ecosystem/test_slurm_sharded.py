"""SLURM starts two nodes whose ranks shard the model; a task dies, and the next job goes on."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.test_launchers import SRUN, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        tuple(map(int, version("lightning").split(".")[:2])) < (2, 6),
        reason="Lightning before 2.6 does not step the scheduler of a resumed epoch",
    ),
]
RANK = str(Path(__file__).with_name("slurm_rank.py"))


def srun(place: Path, root: str, **more: Any) -> tuple[int, list[dict[str, Any]]]:
    """The status of the job, and what each rank said at its end."""
    job = {"out": str(place), "root": str(place.with_name(root)), "kind": "fsdp", "dropout": 0.3}
    jobs = place.with_suffix(".json")
    jobs.write_text(json.dumps([{**job, **more}]))
    code = run([sys.executable, SRUN, "2x1", sys.executable, RANK, str(jobs)], place)
    told = [place / f"{rank}.json" for rank in range(2)]
    return code, [json.loads(each.read_text()) for each in told if each.exists()]


def test_a_job_of_slurm_goes_on_to_the_very_state(tmp_path: Path) -> None:
    code, wanted = srun(tmp_path / "whole", "other")
    assert code == 0, (tmp_path / "whole" / "said").read_text()
    code, _ = srun(tmp_path / "killed", "ck", dies_at=5, there="step=4")
    assert code != 0
    code, found = srun(tmp_path / "resumed", "ck", seed=9)
    assert code == 0, (tmp_path / "resumed" / "said").read_text()
    for mine, other in zip(found, wanted, strict=True):
        assert mine["first"] == 4
        for key in ("digest", "step", "lr", "draw"):
            assert mine[key] == other[key], key
