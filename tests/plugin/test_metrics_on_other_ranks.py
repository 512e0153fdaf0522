"""The metrics of an epoch that goes on on another number of ranks are those of all its samples."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.test_other_ranks import GLOBAL_BATCH, job, resumed_job

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(OLD, reason="Lightning before 2.6 resumes otherwise inside an epoch"),
]
SCRIPT = Path(__file__).with_name("elastic_metrics.py")
MERGED = {
    *("error", "auroc", "most", "least", "best", "seen", "first"),
    *("BinaryAccuracy", "BinaryPrecision", "BinaryRecall"),
    *("mean_epoch", "sum_epoch", "max_epoch", "min_epoch"),
}


def run(scripts: Any, jobs: list[dict[str, Any]], ranks: int) -> str:
    """The stderr of rank 0."""
    path = Path(f"{jobs[0]['out']}.jobs.json")
    path.write_text(json.dumps(jobs))
    done = scripts.ranks(SCRIPT, path, envs=[{}] * ranks, timeout=120)
    assert [process.code for process in done] == [0] * ranks, "\n".join(map(str, done))
    return str(done[0].err)


def epochs(out: Path, rank: int = 0) -> list[dict[str, float]]:
    return json.loads((out / f"{rank}.json").read_text())["epochs"]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_metrics_that_are_reduced_over_ranks_are_those_of_the_whole_epoch(
    scripts: Any, tmp_path: Path, before: int, after: int
) -> None:
    """6 steps an epoch of 48 samples; resumed in the middle of the second one, and at its end."""
    first = job(tmp_path / "first", "plain", before, 0)
    run(scripts, [first], before)
    wanted = epochs(tmp_path / "first")
    assert len(wanted) == 3
    batch = GLOBAL_BATCH // after
    resumed = [resumed_job(first, f"from-{step}", step, batch=batch, every=6) for step in (9, 12)]
    said = run(scripts, resumed, after)
    for one, rest in zip(resumed, (wanted[1:], wanted[2:]), strict=True):
        for rank in range(after):
            found = epochs(Path(one["out"]), rank)[-len(rest) :]
            for got, want in zip(found, rest, strict=True):
                assert {name: got[name] for name in MERGED} == pytest.approx(
                    {name: want[name] for name in MERGED}, rel=1e-4, abs=1e-5
                )
    lines = [line for line in said.splitlines() if "anew" in line]
    assert all(any(name in line for name in ("pearson", "own")) for line in lines)
    assert any("pearson" in line for line in lines)
    assert any("own" in line for line in lines) == (after > 1)
    assert not any(name in line for name in ("error", "mean_epoch", "auroc") for line in lines)
