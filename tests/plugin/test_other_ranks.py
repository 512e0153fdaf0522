"""A run resumed on another number of ranks trains, in each step, what it would have trained."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("elastic_runs.py")
GLOBAL_BATCH = 8
RANKS, WORKERS = (1, 2, 4), (0, 2)
PLACES = tuple(itertools.product(RANKS, WORKERS))
KINDS = (
    "plain",
    "plain_shuffled",
    "plain_sampler_shuffled",
    "stateful",
    "stateful_shuffled",
    "stateful_sampler_shuffled",
)
SHAPES = ((48, False), (45, False), (45, True))
"""Samples, and whether a last batch that is not full is left out."""


def job(out: Path, kind: str, ranks: int, workers: int, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "root": str(out / "ck"),
        "kind": kind,
        "samples": 48,
        "drop_last": False,
        "batch": GLOBAL_BATCH // ranks,
        "workers": workers,
        "accumulate": 1,
        "noise": False,
        "seed": 1,
        "trainer": {},
        **more,
    }


def run(scripts: Any, jobs: list[dict[str, Any]], ranks: int) -> list[str]:
    """Fit each of the jobs on so many ranks, one after the other; the stderr of each rank."""
    path = Path(f"{jobs[0]['out']}.jobs.json")
    path.write_text(json.dumps(jobs))
    done = scripts.ranks(SCRIPT, path, envs=[{}] * ranks, timeout=60 + 20 * len(jobs))
    assert [process.code for process in done] == [0] * ranks, "\n".join(map(str, done))
    return [process.err for process in done]


def steps(out: Path) -> dict[int, Counter[int]]:
    """How often each sample is trained in each step, by all ranks together."""
    found: dict[int, Counter[int]] = {}
    for path in out.glob("*.json"):
        for step, _, samples in json.loads(path.read_text())["trained"]:
            found.setdefault(step, Counter()).update(samples)
    return found


def weights(out: Path) -> list[float]:
    return json.loads((out / "0.json").read_text())["weights"]


def check(reference: Path, resumed: Path, *, first: int, padded: bool = False) -> None:
    """Each step from `first` on trains what it trains in the uninterrupted run.

    With `padded`, the last step of an epoch may also train some of its first samples again, which
    is how torch's samplers give each rank equally many.
    """
    wanted, found = steps(reference), steps(resumed)
    assert sorted(found) == [step for step in sorted(wanted) if step >= first]
    epoch = len(wanted) // 3
    for step, trained in found.items():
        again = set(wanted[step - epoch + 1]) if padded and step % epoch == epoch - 1 else set()
        assert without(trained, again) == without(wanted[step], again), f"step {step}"
    if not padded:
        assert weights(resumed) == pytest.approx(weights(reference), rel=1e-4, abs=1e-6)


def without(counts: Counter[int], left_out: set[int]) -> dict[int, int]:
    return {sample: count for sample, count in counts.items() if sample not in left_out}


def resumes(
    scripts: Any, tmp_path: Path, before: tuple[int, int], after: tuple[int, int], cases: Any
) -> int:
    """Resume each case in the middle of the second epoch, and at its end; the number of resumes."""
    checks = []
    for name, kind, (samples, drop_last) in cases:
        reference, more = tmp_path / name, {"samples": samples, "drop_last": drop_last}
        epoch = len(steps(reference)) // 3
        assert sum(map(len, steps(reference).values())) > 0
        for step in (epoch + 2, 2 * epoch):
            out = tmp_path / f"{name}-on-{after[0]}-{after[1]}-from-{step}"
            copy_of = str(reference / "ck" / f"step={step}")
            checks.append(
                (
                    job(out, kind, *after, seed=99, copy_of=copy_of, **more),
                    {"reference": reference, "first": step},
                    samples % GLOBAL_BATCH != 0 and not drop_last,
                )
            )
    run(scripts, [one for one, _, _ in checks], after[0])
    for one, of, padded in checks:
        check(resumed=Path(one["out"]), padded=padded, **of)
    return len(checks)


def references(
    scripts: Any, tmp_path: Path, before: tuple[int, int], kinds: Any, shapes: Any
) -> list[Any]:
    """Train each case without an interruption, with a checkpoint at every step."""
    cases = [
        (f"{kind}-{samples}-{drop_last}", kind, (samples, drop_last))
        for kind in kinds
        for samples, drop_last in shapes
    ]
    jobs = [
        job(tmp_path / name, kind, *before, samples=shape[0], drop_last=shape[1])
        for name, kind, shape in cases
    ]
    run(scripts, jobs, before[0])
    return cases


def sample() -> list[Any]:
    """Of each kind of dataloader one pair of places, and one shape."""
    dice = random.Random(19)
    pairs = [pair for pair in itertools.permutations(PLACES, 2) if pair[0][0] != pair[1][0]]
    chosen = zip(dice.sample(pairs, len(KINDS)), KINDS, SHAPES * 2, strict=True)
    return [pytest.param(*one, id=f"{one[1]}-{one[0]}") for one in chosen]


@pytest.mark.parametrize(("pair", "kind", "shape"), sample())
def test_each_step_trains_the_samples_of_the_uninterrupted_run(
    scripts: Any, tmp_path: Path, pair: Any, kind: str, shape: tuple[int, bool]
) -> None:
    before, after = pair
    cases = references(scripts, tmp_path, before, [kind], [shape])
    assert resumes(scripts, tmp_path, before, after, cases) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("before", PLACES, ids=str)
def test_every_pair_of_ranks_and_workers_for_every_dataloader(
    scripts: Any, tmp_path: Path, before: tuple[int, int]
) -> None:
    """Run it alone with `nox -s matrix -- -k every_pair`."""
    cases = references(scripts, tmp_path, before, KINDS, SHAPES)
    done = sum(resumes(scripts, tmp_path, before, after, cases) for after in PLACES)
    assert done == 2 * len(PLACES) * len(cases)
