"""SIGTERM to real ranks at named and at random moments: nothing is lost, and nothing hangs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.optimal_save_interval import best_interval
from tests.fault.nursery import Nursery

pytestmark = pytest.mark.matrix

JOB = Path(__file__).with_name("preempted.py")
LIGHTNING = tuple(int(part) for part in version("lightning").split(".")[:2])
EXACT = LIGHTNING >= (2, 6)
"""Before, Lightning makes the iterator of a resumed epoch twice, and draws twice."""
ENDED = 128 + signal.SIGTERM


@pytest.fixture
def nursery(fork_server):
    found = Nursery(fork_server, JOB)
    yield found
    found.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Run:
    """One training that is told to end, and started again until it comes to its end."""

    def __init__(self, nursery: Nursery, folder: Path, ranks: int, **options: object) -> None:
        self.nursery, self.folder, self.ranks, self.options = nursery, folder, ranks, options
        self.root, self.journal = folder / "ck", folder / "journal.jsonl"
        self.lives = 0
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, **more: object) -> list[int]:
        self.lives += 1
        return self.nursery.start_ranks(
            root=str(self.root),
            store=(self.folder / "store").as_uri(),
            journal=str(self.journal),
            life=self.lives,
            ranks=self.ranks,
            port=free_port(),
            **{"seed": self.lives, **self.options, **more},
        )

    def live(self, **more: object) -> list[int]:
        """Run to the end of this life; the exit status of each rank."""
        self.start(**more)
        return self.nursery.statuses()

    def notes(self, event: str) -> list[dict[str, object]]:
        text = self.journal.read_text() if self.journal.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [note for note in found if note["event"] == event]

    def events(self, kind: str) -> list[dict[str, object]]:
        try:
            return [event for event in read_events(self.root) if event["event"] == kind]
        except FileNotFoundError:
            return []

    def newest(self) -> int:
        """Step of the newest checkpoint, which is whole."""
        found, refused, _ = list_committed(self.root) if self.root.exists() else ([], [], [])
        assert not refused
        if not found:
            return 0
        verify(found[0].path)
        return found[0].manifest.step

    def errors(self) -> str:
        path = Path(f"{self.journal}.err")
        return path.read_text() if path.exists() else ""

    @property
    def digest(self) -> str:
        (end,) = self.notes("end")
        return end["digest"]


_REFERENCES: dict[tuple[object, ...], str] = {}


def reference(nursery: Nursery, folder: Path, ranks: int, **options: object) -> str:
    """Digest of the uninterrupted run."""
    key = (ranks, json.dumps(options, sort_keys=True))
    if key not in _REFERENCES:
        run = Run(nursery, folder / "reference", ranks, **options)
        statuses = run.live(seed=1)
        assert statuses == [0] * ranks, run.errors()
        _REFERENCES[key] = run.digest
    return _REFERENCES[key]


SHORT = {"max_epochs": 3}
WHERE = {
    "first step": {"name": "step", "number": 0},
    "step": {"name": "step", "number": 21},
    "dataloading": {"name": "dataloading", "number": 40},
    "save": {"name": "save", "number": 20},
    "last batch of an epoch": {"name": "step", "number": 31},
    "validation": {"name": "validation", "number": 18},
    "end of an epoch": {"name": "epoch_end", "number": 32},
}


def everybody(moment: dict[str, object], who: str) -> dict[str, object]:
    return {**moment, "all": who == "all", "rank": 1 if who == "peer" else 0}


CASES = [
    *(pytest.param(1, "main", where, id=f"1-main-{where}") for where in WHERE),
    *(
        pytest.param(2, who, where, id=f"2-{who}-{where}")
        for who in ("all", "peer")
        for where in WHERE
    ),
    *(pytest.param(2, "main", where, id=f"2-main-{where}") for where in ("step", "validation")),
]


@pytest.mark.parametrize(("ranks", "who", "where"), CASES)
def test_a_run_that_is_told_to_end_saves_where_it_stands_and_goes_on_exactly(
    nursery, tmp_path, ranks, who, where
):
    digest = reference(nursery, tmp_path, ranks, trainer_options=SHORT)
    run = Run(nursery, tmp_path / "run", ranks, trainer_options=SHORT)
    statuses = run.live(moment=everybody(WHERE[where], who))
    assert statuses == [ENDED] + [0] * (ranks - 1), run.errors()
    (event,) = run.events("preempted")
    assert event["signal"] == "SIGTERM"
    assert event["grace"] == 60.0
    assert event["step"] == run.newest() > 0
    assert run.live() == [0] * ranks, run.errors()
    assert run.notes("start")[-1]["step"] == event["step"]
    assert run.digest == digest or not EXACT


@pytest.mark.parametrize("where", ["setup", "fit_start", "sanity", "train_start"])
@pytest.mark.parametrize(("ranks", "who"), [(1, "main"), (2, "all")])
def test_before_the_first_batch_sigterm_ends_a_run_at_once(nursery, tmp_path, ranks, who, where):
    """There is nothing to save; what is committed stays what the next run goes on from."""
    run = Run(nursery, tmp_path, ranks, trainer_options={"max_epochs": 1})
    statuses = run.live(moment=everybody({"name": where}, who))
    assert statuses[0] == -signal.SIGTERM, run.errors()
    # the other may stand in its first batch already, and lose its peer there
    assert set(statuses[1:]) <= {-signal.SIGTERM, 1}
    assert run.newest() == 0
    assert run.events("preempted")
    assert run.live() == [0] * ranks, run.errors()


@pytest.mark.parametrize("where", ["train_end", "drain"])
def test_a_signal_at_the_end_lets_the_run_finish_and_is_obeyed_then(nursery, tmp_path, where):
    run = Run(nursery, tmp_path, 1, trainer_options={"max_epochs": 1})
    assert run.live(moment={"name": where}) == [ENDED], run.errors()
    assert run.newest() == 16
    (event,) = run.events("preempted")
    assert event["step"] == 16
    assert not run.notes("end")
    assert run.live() == [0], run.errors()


def test_the_same_signal_again_and_again_changes_nothing(nursery, tmp_path):
    """Launchers send it beside the platform."""
    digest = reference(nursery, tmp_path, 2, trainer_options=SHORT)
    run = Run(nursery, tmp_path / "run", 2, trainer_options=SHORT)
    moment = {"name": "step", "number": 21, "all": True, "times": 5}
    assert run.live(moment=moment) == [ENDED, 0], run.errors()
    assert len(run.events("preempted")) == 1
    assert run.live() == [0, 0], run.errors()
    assert run.digest == digest or not EXACT


def test_a_save_that_a_model_checkpoint_just_made_is_not_made_twice(nursery, tmp_path):
    run = Run(nursery, tmp_path, 1, trainer_options={"max_epochs": 1})
    assert run.live(moment={"name": "step", "number": 3}) == [ENDED]
    assert {path.name for path in run.root.glob("*-*")} == {"checkpoint-4"}


def test_an_interim_checkpoint_goes_when_a_newer_one_stands_in_for_it(nursery, tmp_path):
    """It must not stay for ever: nobody asked for it."""
    run = Run(nursery, tmp_path, 1, trainer_options={"max_epochs": 2})
    assert run.live(moment={"name": "step", "number": 4}) == [ENDED]
    assert (run.root / "interim-5").is_dir()
    assert run.live(moment={"name": "step", "number": 18}) == [ENDED]
    assert (run.root / "interim-5").is_dir()  # what a run resumed from it never deletes
    assert (run.root / "interim-19").is_dir()
    assert run.live() == [0], run.errors()
    assert {path.name for path in run.root.glob("interim-*")} == {"interim-19"}
    stored = {path.name for path in (tmp_path / "store").rglob("interim-*")}
    assert stored == {"interim-19"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_saves_at_an_interval_keep_only_the_newest_and_change_nothing(nursery, tmp_path, ranks):
    options = {"trainer_options": {"max_epochs": 9}, "save": {"every_n_epochs": 3}}
    digest = reference(nursery, tmp_path, ranks, **options)
    run = Run(nursery, tmp_path / "run", ranks, interval_s=0.001, **options)
    waits = {"name": "step", "number": 20, "signal": 0}  # until rank 0 has asked for a save
    assert run.live(seed=1, moment=waits) == [0] * ranks, run.errors()
    own = [e for e in run.events("save") if str(e["checkpoint_id"]).startswith("interim-")]
    assert own
    assert run.digest == digest or not EXACT
    assert not list(run.root.glob("interim-*"))  # the last epoch's stands in for all of them
    assert list(run.root.glob("checkpoint-*"))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_interval_save_resumes_exactly(nursery, tmp_path, accumulate):
    trainer_options = {**SHORT, "accumulate_grad_batches": accumulate}
    options = {"trainer_options": trainer_options, "save": {"every_n_epochs": 50}}
    digest = reference(nursery, tmp_path, 1, **options)
    run = Run(nursery, tmp_path / "run", 1, interval_s=0.001, **options)  # due at each batch
    killed = run.live(seed=1, moment={"name": "step", "number": 9, "signal": signal.SIGKILL})
    assert killed == [-signal.SIGKILL], run.errors()
    assert run.live() == [0], run.errors()  # it waits for what the worker of the first commits
    assert run.notes("start")[-1]["step"] > 0
    assert run.digest == digest or not EXACT


# too little time


def test_in_a_long_validation_the_state_before_it_is_saved_in_time(nursery, tmp_path):
    """The last save was an epoch ago; the validation would outlast the platform's patience."""
    options = {"trainer_options": SHORT, "validation_batches": 100_000}
    run = Run(nursery, tmp_path, 1, grace_s=10.0, **options)
    moment = {"name": "validation", "number": 16 + 500}
    assert run.live(moment=moment) == [ENDED], run.errors()
    (event,) = run.events("preempted")
    assert event["checkpoint"] == "interim-16"
    assert run.live(grace_s=60.0, validation_batches=4) == [0], run.errors()
    assert run.notes("start")[-1]["step"] == 16
    assert run.notes("end")[0]["step"] == 48


def test_without_time_for_a_save_what_is_saved_is_kept(nursery, tmp_path):
    run = Run(nursery, tmp_path, 1, trainer_options={"max_epochs": 1}, grace_s=0.5)
    assert run.live(moment={"name": "step", "number": 8}) == [ENDED], run.errors()
    (event,) = run.events("preempted")
    assert event["step"] in {4, 8}
    assert not list(run.root.glob("interim-*"))
    assert run.live(grace_s=60.0) == [0], run.errors()
    assert run.notes("start")[-1]["step"] == 8  # its worker committed what it had been given


# by itself


@pytest.mark.parametrize(
    ("width", "bt"), [(32, {}), (100_000, {"arena_memory": 1})], ids=["small", "large and slow"]
)
def test_the_interval_follows_what_saves_were_measured_to_take(nursery, tmp_path, width, bt):
    options = {"trainer_options": {"max_epochs": 6}}  # long enough for a save to be measured
    save = {"every_n_train_steps": 2, "save_top_k": 3, "monitor": "step", "mode": "max"}
    bt = {"interval": "auto", **bt}
    run = Run(nursery, tmp_path, 1, **options, width=width, bt=bt, save=save)
    assert run.live() == [0], run.errors()
    found = run.events("interval")
    assert found
    for event in found:
        measured = event["cost_s"], event["mtbf_s"], 0.05, event["takes_s"]
        assert event["interval_s"] == best_interval(*measured)
        assert event["cost_s"] > 0
        assert event["mtbf_s"] >= 86400


# many, at random


def torture(nursery: Nursery, folder: Path, ranks: int, seed: int, preemptions: int) -> int:
    """Tell runs to end at random moments until they come to their end; how often that was."""
    chance = random.Random(seed)
    started = time.monotonic()
    digest = reference(nursery, folder, ranks)
    seconds, total, number = time.monotonic() - started, 0, 0
    while total < preemptions:
        run = Run(nursery, folder / f"run-{number}", ranks)
        least, calm = 0, 0
        while not run.notes("end"):
            pids = run.start(seed=1 if least == 0 else 100 + run.lives)
            processes = [psutil.Process(pid) for pid in pids]
            if calm < 12:
                wait_or_tell(processes, pids, chance, seconds)
            calm += 1
            statuses = run.nursery.statuses()
            killed = any(status < 0 for status in statuses)  # before its first batch, with others
            known = {0, ENDED, -signal.SIGTERM, -signal.SIGKILL} | ({1} if killed else set())
            assert set(statuses) <= known, run.errors()
            newest = run.newest()
            assert newest >= least, "a committed checkpoint was lost"
            begun = [note["step"] for note in run.notes("start") if note["life"] == run.lives]
            assert not begun or begun[0] >= least, "a run did not go on where the last one ended"
            if statuses[0] == ENDED:
                assert run.events("preempted")[-1]["step"] in {newest, None}
            total += any(status in {ENDED, -signal.SIGTERM} for status in statuses)
            least = newest
        assert run.digest == digest or not EXACT, "the resumed run is not the uninterrupted one"
        shutil.rmtree(run.folder)
        number += 1
    return total


def wait_or_tell(processes, pids, chance, seconds) -> None:
    """Let it run for a random time, then send SIGTERM to everybody, or to one rank."""
    deadline = time.monotonic() + chance.uniform(0, seconds)
    handle = os.pidfd_open(pids[0])
    try:
        ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        if ended:
            return
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if chance.random() < 0.5:
                os.killpg(pids[0], signal.SIGTERM)
            else:
                chance.choice(processes).send_signal(signal.SIGTERM)
    finally:
        os.close(handle)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_told_to_end_at_random_moments_ends_as_if_it_had_not_been(nursery, tmp_path, ranks):
    assert torture(nursery, tmp_path, ranks, seed=1, preemptions=3) >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [21, 22, 23, 24])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_hundred_preemptions_lose_nothing(nursery, tmp_path, ranks, seed):
    assert torture(nursery, tmp_path, ranks, seed, preemptions=25) >= 25
