"""A run resumed on another number of ranks trains, in each step, what it would have trained."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import BatchSampler

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 draws more from the global generator at a resume"
)

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
        "every": 1,
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


def resumes(scripts: Any, tmp_path: Path, after: tuple[int, int], cases: Any) -> int:
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
                    job(out, kind, *after, seed=99, every=6, copy_of=copy_of, **more),
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
    return [
        pytest.param(*one, id=f"{one[1]}-{one[0]}", marks=needs_26 if drawn_globally(*one) else ())
        for one in chosen
    ]


def drawn_globally(pair: Any, kind: str, _: object) -> bool:
    """Whether each epoch's order is drawn from the generator that all else draws from."""
    return kind == "plain_shuffled" and pair[0][0] == 1


@pytest.mark.parametrize(("pair", "kind", "shape"), sample())
def test_each_step_trains_the_samples_of_the_uninterrupted_run(
    scripts: Any, tmp_path: Path, pair: Any, kind: str, shape: tuple[int, bool]
) -> None:
    before, after = pair
    cases = references(scripts, tmp_path, before, [kind], [shape])
    assert resumes(scripts, tmp_path, after, cases) == 2


def resumed_job(reference: dict[str, Any], name: str, step: int, **more: Any) -> dict[str, Any]:
    """A job that starts from what `reference` had saved at `step`, as after its death there."""
    out = Path(reference["out"]).with_name(name)
    copy_of = str(Path(reference["root"]) / f"step={step}")
    places = {"out": str(out), "root": str(out / "ck"), "copy_of": copy_of, "seed": 99}
    return {**reference, **places, **more}


def test_an_epoch_keeps_the_length_that_its_first_ranks_gave_it(
    scripts: Any, tmp_path: Path
) -> None:
    """Of 45 samples, 4 ranks fill up and train 6 full batches; one rank alone would train 5."""
    cases = references(scripts, tmp_path, (4, 0), ["plain"], [(45, True)])
    assert len(steps(tmp_path / cases[0][0])) == 18
    assert resumes(scripts, tmp_path, (1, 0), cases) == 2


@needs_26
@pytest.mark.parametrize("kind", ["plain_shuffled", "stateful_shuffled"])
def test_the_order_outlives_several_changes(scripts: Any, tmp_path: Path, kind: str) -> None:
    """From 1 rank to 2, inside that epoch to 4, at its end back to 1."""
    jobs = [job(tmp_path / "first", kind, 1, 0)]
    run(scripts, jobs, 1)
    for ranks, step in ((2, 8), (4, 9), (1, 12), (1, 13)):
        name = f"on-{ranks}-from-{step}"
        jobs.append(resumed_job(jobs[-1], name, step, batch=GLOBAL_BATCH // ranks))
        run(scripts, jobs[-1:], ranks)
        check(tmp_path / "first", tmp_path / name, first=step)


@needs_26
def test_accumulated_batches_count_as_ranks_do(scripts: Any, tmp_path: Path) -> None:
    first = job(tmp_path / "first", "plain_shuffled", 2, 0)
    run(scripts, [first], 2)
    second = resumed_job(first, "second", 8, accumulate=2)
    (said,) = run(scripts, [second], 1)
    assert "each step takes the samples of the uninterrupted run" in said
    check(tmp_path / "first", tmp_path / "second", first=8)
    third = resumed_job(second, "third", 9, accumulate=1)
    run(scripts, [third], 2)
    check(tmp_path / "first", tmp_path / "third", first=9)


@pytest.mark.parametrize("kind", ["plain_shuffled", "stateful_sampler_shuffled"])
def test_another_global_batch_goes_on_at_the_next_sample(
    scripts: Any, tmp_path: Path, kind: str
) -> None:
    """32 of 48 samples are left after two batches of 8: 6 batches of 6 at most, in that order."""
    first = job(tmp_path / "first", kind, 2, 0)
    run(scripts, [first], 2)
    second = resumed_job(first, "second", 8, batch=6)
    (said,) = run(scripts, [second], 1)
    assert "saved by 2 ranks, resumed on 1: a step takes 6 samples and took 8" in said
    assert "goes on at its sample 16 of 48" in said
    wanted, found = steps(tmp_path / "first"), steps(tmp_path / "second")
    assert sum((found[step] for step in range(8, 14)), Counter()) == sum(
        (wanted[step] for step in range(8, 12)), Counter()
    )
    assert sorted(found) == list(range(8, 22))
    assert sum((found[step] for step in range(14, 22)), Counter()) == Counter(range(48))


def test_ranks_whose_generators_differ_share_one_order(scripts: Any, tmp_path: Path) -> None:
    """Dropout, and a look at the data by rank 0 alone, before each epoch."""
    first = job(tmp_path / "first", "plain_shuffled", 1, 0, noise=True)
    run(scripts, [first], 1)
    jobs = [
        resumed_job(first, f"from-{step}", step, batch=4, workers=workers, seed=None)
        for step, workers in ((8, 2), (6, 0))
    ]
    run(scripts, jobs, 2)
    wanted = steps(tmp_path / "first")
    found = steps(tmp_path / "from-8")
    assert all(found[step] == wanted[step] for step in range(8, 12))
    for epoch in (found, steps(tmp_path / "from-6")):
        assert sum((epoch[step] for step in range(12, 18)), Counter()) == Counter(range(48))


@needs_26
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"kind": "weighted"}, id="weighted"),
        pytest.param({"kind": "own_generator"}, id="own_generator"),
        pytest.param({"kind": "own_generator", "samples": 45}, id="own_generator-45"),
        pytest.param({"kind": "own_generator", "workers": 2}, id="own_generator-workers"),
        pytest.param({"kind": "random_in_stateful"}, id="random_in_stateful"),
        pytest.param({"trainer": {"reload_dataloaders_every_n_epochs": 1}}, id="reload"),
        pytest.param({"trainer": {"limit_train_batches": 4}}, id="limit"),
    ],
)
def test_other_samplers_and_limits(scripts: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    """On as many ranks as before, and on twice as many, inside an epoch and at its end."""
    first = {**job(tmp_path / "first", "plain_shuffled", 1, 0), **more}
    run(scripts, [first], 1)
    epoch = len(steps(tmp_path / "first")) // 3
    for ranks in (1, 2):
        places = [(step, f"{ranks}-{step}") for step in (epoch + 2, 2 * epoch)]
        batch = GLOBAL_BATCH // ranks
        run(scripts, [resumed_job(first, name, step, batch=batch) for step, name in places], ranks)
        for step, name in places:
            padded = ranks == 2 and first["samples"] == 45
            check(tmp_path / "first", tmp_path / name, first=step, padded=padded)


def test_the_dataloader_is_given_back_when_the_fit_ends(runs: Any, tmp_path: Path) -> None:
    """By one that ran to its end, by one that failed, and by one that was resumed."""
    save = {"every_n_train_steps": 3, "save_top_k": -1}
    for make in (partial(runs.Net, 4), runs.Net):
        run = runs.fit(tmp_path, make=make, save=save)
        assert type(run.trainer.train_dataloader.batch_sampler) is BatchSampler
    assert run.first_step == 3


def test_an_order_that_is_not_known_is_said(scripts: Any, tmp_path: Path) -> None:
    first = job(tmp_path / "first", "custom", 1, 0)
    other_data = job(tmp_path / "data", "plain_shuffled", 1, 0)
    run(scripts, [first, other_data], 1)
    again = [resumed_job(other_data, "more", 8, samples=56)]
    said = run(scripts, again, 1)[0]
    assert "not known (it reads 56 samples, it read 48)" in said
    said = run(scripts, [resumed_job(first, "second", 8, batch=4)], 2)[0]
    assert "not known (batches are made by" in said
    assert "some are trained twice" in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("before", PLACES, ids=str)
def test_every_pair_of_ranks_and_workers_for_every_dataloader(
    scripts: Any, tmp_path: Path, before: tuple[int, int]
) -> None:
    """Each with each dataloader, the shapes in turn. Alone: `nox -s matrix -- -k every_pair`."""
    cases = references(scripts, tmp_path, before, KINDS, SHAPES)
    for number, after in enumerate(PLACES):
        chosen = [
            cases[len(SHAPES) * kind + (kind + number + PLACES.index(before)) % len(SHAPES)]
            for kind in range(len(KINDS))
        ]
        assert resumes(scripts, tmp_path, after, chosen) == 2 * len(KINDS)
