"""Workers and trainers of four ranks are killed at random moments of saves: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

import pytest

from bt_lightning.errors import WorkerDiedError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manifest import Manifest
from bt_lightning.session.directory_takeover import take_over
from bt_lightning.worker_messages import Committed
from tests.worker.conftest import eventually
from tests.worker.gathering import Rank, is_whole

pytestmark = pytest.mark.matrix

WORLD = 4
KILLS = 5
LONGEST_S = 60.0
"""Longer than this is a hang."""


class Run:
    """Runs in one directory, one after the other, each with ranks of its own."""

    def __init__(self, root, random_):
        self.root, self.random = root, random_
        self.begun = 0
        self.number = 0
        self.ranks = []
        self.said = {}
        """Run and number of each save that some rank was told is committed."""
        root.mkdir()
        self.begin()

    def begin(self):
        """Begin another run, as a trainer of rank 0 does, and then the others."""
        take_over(self.root, LONGEST_S, stored=False)
        self.begun, self.number = self.begun + 1, 0
        name = f"{self.begun:032x}"
        self.ranks = [
            Rank(self.root, rank, WORLD, run=name, drain_s=LONGEST_S) for rank in range(WORLD)
        ]

    def poll(self):
        for rank in self.ranks:
            with contextlib.suppress(WorkerDiedError):  # the next poll starts another
                rank.poll()
            for event in rank.events:
                if isinstance(event, Committed):
                    self.said.setdefault((rank.run, event.number), set()).add(event.manifest)

    def save_and_kill(self, what):
        self.number += 1
        name = f"checkpoint-{self.begun}-{self.number}"
        for rank in self.random.sample(self.ranks, WORLD):
            self.pause(0.02)
            rank.save(self.number, name)
        self.pause(0.12)
        for victim in what:
            os.kill(victim.worker.pid, signal.SIGKILL)

    def pause(self, most_s):
        """Until a random moment; what is there in it is noticed."""
        threading.Event().wait(self.random.random() * most_s)
        self.poll()

    def all_told(self):
        """Every rank knows what came of every save; after that their arenas are free."""

        def told():
            self.poll()
            return all(rank.outcome(self.number) for rank in self.ranks)

        eventually(told, LONGEST_S)
        assert all(isinstance(rank.outcome(self.number), Committed) for rank in self.ranks)

    def lose_trainers(self):
        for rank in self.ranks:
            threading.Event().wait(self.random.random() * 0.03)
            rank.worker._conn.close()

    def close(self):
        for rank in self.ranks:
            rank.close()

    def check(self):
        each = [one.manifest for one in list_committed(self.root).found]
        found = {manifest.checkpoint_id: manifest for manifest in each}
        for name, manifest in found.items():
            _, begun, number = name.split("-")
            assert is_whole(self.root, manifest, f"{int(begun):032x}", int(number), WORLD)
        for (run, number), manifests in self.said.items():
            (manifest,) = manifests  # the same for all ranks
            name = f"checkpoint-{int(run, 16)}-{number}"
            assert Manifest.from_bytes(manifest, "").digest == found[name].digest


def kill_and_check(root, seed):
    random_ = random.Random(seed)
    run = Run(root, random_)
    try:
        for _ in range(KILLS):
            kind = random_.choice(("one", "one", "leader", "two", "all", "trainers", "everything"))
            victims = {
                "one": random_.sample(run.ranks, 1),
                "leader": run.ranks[:1],
                "two": random_.sample(run.ranks, 2),
                "trainers": [],
            }.get(kind, run.ranks)
            if kind == "trainers":
                run.save_and_kill(())
                run.lose_trainers()
                old = run.ranks
                run.begin()
                for rank in old:
                    rank.close()
            elif kind == "everything":
                run.save_and_kill(victims)
                run.close()
                run.begin()
            else:
                run.save_and_kill(victims)
                run.all_told()
            run.check()
        run.save_and_kill(())
        run.all_told()
        run.check()
    finally:
        run.close()


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_partial_or_mixed(tmp_path, seed):
    kill_and_check(tmp_path / "root", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_nothing_is_lost_partial_or_mixed_in_many_kills(tmp_path, seed):
    kill_and_check(tmp_path / "root", seed)
