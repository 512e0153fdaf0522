"""Trainers of four ranks die by SIGKILL with or without their workers; the next run begins."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bt_lightning.localdir.atomic_directory import gathers
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest
from bt_lightning.session.directory_takeover import take_over
from tests.worker.conftest import eventually
from tests.worker.gathering import is_whole

pytestmark = pytest.mark.matrix

WORLD = 4
LONGEST_S = 60.0
MARK = "GATHER_TEST_JOB"
PROJECT = Path(__file__).parents[2]


class Job:
    """One run after the other in a directory, of real processes."""

    def __init__(self, place, seed):
        self.place, self.root = place, place / "root"
        self.root.mkdir(parents=True)
        self.random = random.Random(seed)
        self.runs = 0
        self.trainers = []
        self.commits = 0

    @property
    def run(self):
        return f"{self.runs:032x}"

    def log(self, rank):
        return self.place / f"log-{self.run}-{rank}"

    def begin(self):
        self.runs += 1
        command = [sys.executable, "-m", "tests.worker.gather_trainer", str(self.root)]
        direct = str(self.random.randrange(2))
        self.trainers = [
            subprocess.Popen(
                [*command, str(rank), str(WORLD), self.run, str(self.log(rank)), direct],
                cwd=PROJECT,
                env={**os.environ, MARK: str(self.place)},
            )
            for rank in range(WORLD)
        ]

    def lines(self, rank, word):
        try:
            text = self.log(rank).read_text()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1].splitlines()
        return [line.split()[1:] for line in whole if line.startswith(word)]

    def workers(self):
        return [int(pid) for rank in range(WORLD) for (pid,) in self.lines(rank, "worker")]

    def kill(self):
        """As torchrun does: one dies, and then all; sometimes with workers, as a node does."""
        victims = self.random.sample(self.trainers, WORLD)
        dying = [trainer.pid for trainer in victims]
        if self.random.random() < 0.5:
            dying += self.random.sample(self.workers(), self.random.randrange(WORLD + 1))
            self.random.shuffle(dying)
        for pid in dying:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            threading.Event().wait(self.random.random() * 0.02)
        for trainer in self.trainers:
            trainer.wait(LONGEST_S)

    def check(self):
        """What is there is whole; what a rank was told is there, unless a newer one replaced it."""
        for one in list_committed(self.root).found:
            text = (one.path / "trainer.json").read_text()
            run, number, _ = text.split(";")[0].split("/")
            assert int(number) == one.manifest.step
            assert is_whole(self.root, one.manifest, run, int(number), WORLD)
        said = {}
        for rank in range(WORLD):
            for number, digest in self.lines(rank, "committed"):
                said.setdefault(int(number), set()).add(digest)
        assert all(len(digests) == 1 for digests in said.values())
        newest = {}
        for number in said:
            name = f"checkpoint-{number % 3}"
            newest[name] = max(number, newest.get(name, 0))
        for name, number in newest.items():
            there = read_manifest(self.root / name)
            run = (self.root / name / "trainer.json").read_text().split("/")[0]
            assert run == self.run
            assert there.step >= number
            assert there.step > number or {there.digest} == said[number]
        self.commits += len(said)

    def is_over(self):
        """Whether the last worker has ended."""
        return not self.processes()

    def processes(self):
        """All that this job has started, with workers that nobody could note."""
        mark = f"{MARK}={self.place}".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def end(self):
        for trainer in self.trainers:
            trainer.kill()
            trainer.wait(LONGEST_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_runs(place, seed, runs):
    job = Job(place, seed)
    try:
        for _ in range(runs):
            job.begin()
            eventually(lambda: all(job.lines(rank, "worker") for rank in range(WORLD)), LONGEST_S)
            first = job.random.randrange(4)
            eventually(lambda n=first: len(job.lines(0, "committed")) >= n, LONGEST_S)
            threading.Event().wait(job.random.random() * 0.1)
            assert all(trainer.poll() is None for trainer in job.trainers)
            job.kill()
            take_over(job.root, LONGEST_S, stored=False)
            eventually(job.is_over, LONGEST_S)
            job.check()
        assert job.commits > 0
    finally:
        job.end()
    assert gathers(job.root).is_dir()


@pytest.mark.timeout(600)
def test_runs_whose_processes_are_killed_lose_nothing(tmp_path):
    kill_runs(tmp_path / "job", 1, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_runs_whose_processes_are_killed_lose_nothing(tmp_path, seed):
    kill_runs(tmp_path / "job", seed, 3)
