"""Trainings whose ranks hold parts of the model, killed at seeded moments of saves, and restarted.

Whatever is committed is compared, byte by byte, with what the run that nobody killed committed of
the same step; there each tensor of each part differs from step to step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import time
from typing import TYPE_CHECKING, Any

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.path_layout import DOT_DIR, job_prefix
from tests.fault.save_stages import SaveWatch, Stage
from tests.fault.sharded_checks import (
    Figures,
    Reference,
    check_nothing_partial,
    check_place,
    check_steps_differ,
    left_over,
    sums_of,
)
from tests.fault.sharded_life import LIMIT_S, Life, kill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fork_server import ForkServer

KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp": (2, {"kind": "fsdp", "batch": 4}),
    "fsdp on 4": (4, {"kind": "fsdp", "batch": 2}),
    "mesh": (4, {"kind": "mesh", "dp": 2, "tp": 2, "batch": 4, "dropout": 0.0}),
    "hsdp": (4, {"kind": "hsdp", "batch": 2}),
    "fsdp1": (2, {"kind": "fsdp1", "dict": "sharded", "batch": 4}),
}
"""Number of ranks and job of each; twelve steps an epoch."""
_IN_GROUPS = {"mesh", "hsdp"}
"""Kinds whose ranks are in groups of two: one without the dead rank waits for torch's timeout, and
only a launcher ends it."""
_EVERY = 2
_WHO = ("rank", "rank", "rank and worker", "worker", "worker", "ranks", "all", "all")
"""Whom a kill hits: one rank, its worker, or both; all ranks without or with their workers."""
_MOMENTS = ("start", "step", "call", "delay", *(stage.name for stage in Stage if stage))
"""Some time after the start, before the save, in its call, some time after it, or when it has come
so far."""
_PREFIX = job_prefix("p", "j", 0)
_END = ("step", "lr", "digest")
_MOST_KILLS = 8
"""Of one training."""


class Training:
    """One training in a folder, from its first start to its end."""

    def __init__(
        self,
        fork_server: ForkServer,
        folder: Path,
        kind: str,
        seed: int,
        *,
        keep: int = -1,
        every: int = _EVERY,
        stored: bool = False,
        nodes: bool = False,
    ) -> None:
        """`keep` is `save_top_k`, `every` the number of steps from save to save.

        `stored`: there is a store as well. `nodes`: each rank has a disk of its own.
        """
        self._fork_server, self.folder, self._random = fork_server, folder, random.Random(seed)
        self._ranks, more = KINDS[kind]
        self._in_groups = kind in _IN_GROUPS
        self.store = folder / "store" if stored or nodes else None
        self._disks = [folder / f"disk-{rank}" for rank in range(self._ranks)] if nodes else []
        self._there = folder / "disk"
        for place in (self._there, *self._disks):
            place.mkdir(parents=True)
        self.root = self._there / "ck"
        bt = {"store": self.store.as_uri(), "project": "p", "job": "j"} if self.store else {}
        self._job = {
            "root": str(self.root),
            "bt": bt,
            "keep": keep,
            "every": every,
            "epochs": 2,
            "rows": 96,
            "hidden": 4096,
            "dropout": 0.3,
            **more,
        }
        self.figures = Figures(trainings=1)
        self.ends: list[dict[str, Any]] = []
        """What each rank came to."""
        self.samples: list[dict[int, list[int]]] = [{} for _ in range(self._ranks)]
        """By rank: what each step trained on."""
        self._said: set[int] = set()
        """Steps of checkpoints of which somebody said that they are committed."""
        self._life: Life | None = None

    @property
    def place(self) -> Path:
        """Where checkpoints are committed."""
        return self.root if self.store is None or not self._disks else self.store

    def _steps(self) -> set[int]:
        """Of what is committed now."""
        if not self.place.exists():
            return set()
        return {one.manifest.step for one in list_committed(self.place).found}

    def run(self, kills: int = 0, reference: Reference | None = None) -> None:
        """Start it until it comes to its end, and kill so many times on the way.

        Raises:
            AssertionError: something was lost, partial or mixed, or a process hung.
        """
        over = False
        while not over:
            least = max(self._steps(), default=0)
            watch = SaveWatch(self._gather_folders(), self._ranks)
            life = self._life = self._start(fresh=not least)
            dead = self._strike(life, watch, kills)
            begun = time.monotonic()
            told = self._random.random() < 0.7 or self._in_groups
            codes = life.end(told=dead and told)
            if dead:
                took_s = time.monotonic() - begun
                self.figures.slowest_end_s = max(self.figures.slowest_end_s, took_s)
            over = not any(codes)
            assert over or dead, f"it failed by itself\n{life.errors()}"
            if dead and self._disks:
                self._lose_disk(life)
            if over or self._random.random() < 0.2:
                life.workers_end()
            self._hear(life, least, reference)
            if reference is not None:
                self._check(reference)
        assert all(said[-1]["event"] == "end" for said in life.notes)
        self.ends = [{key: said[-1][key] for key in _END} for said in life.notes]

    def close(self) -> None:
        """Leave nothing running."""
        if self._life is not None:
            self._life.close()

    def _start(self, *, fresh: bool) -> Life:
        """`fresh`: nothing is committed; else the seed of the script is another one."""
        number = self.figures.starts
        self.figures.starts += 1
        job = {
            **self._job,
            "notes": str(self.folder / f"notes-{number}"),
            "seed": 1 if fresh else 100 + number,
        }
        disks = (self._there, self._disks) if self._disks else None
        return Life(self._fork_server, job, self._ranks, disks)

    def _gather_folders(self) -> list[Path]:
        roots = [disk / "ck" for disk in self._disks] or [self.root]
        found = [root / DOT_DIR / "gather" for root in roots]
        if self._disks and self.store:
            found.append(self.store / _PREFIX / f"{DOT_DIR}-parts")
        return found

    def _strike(self, life: Life, watch: SaveWatch, kills: int) -> bool:
        """Kill whom the seed says, at its moments; whether a rank is dead then."""
        known = 0
        while self.figures.kills.total() < kills:
            who = self._random.choice(_WHO)
            number = known + self._random.choice((1, 1, 1, 2, 3))
            if not life.reach(self._moment(life, watch, number)):
                return False
            victims = self._victims(life, who)
            if not victims:  # that rank has no worker yet
                who, victims = "rank", [life.ranks[0].pid]
            kill(victims)
            self.figures.kills[who] += 1
            self.figures.found[watch.stage(number).name] += 1
            if who != "worker":
                return True
            known = max(watch.newest(), number)
        return False

    def _moment(self, life: Life, watch: SaveWatch, number: int) -> Callable[[], bool]:
        """Whether a moment of that save of this start has come; the seed says which."""
        moment = self._random.choice(_MOMENTS)
        wait_s = self._random.choice((0.0, self._random.uniform(0, 0.01)))
        if moment == "start":
            return _after(lambda: True, self._random.uniform(0, 3))
        if moment in Stage.__members__:
            return _after(lambda: watch.stage(number) >= Stage[moment], wait_s)
        if moment == "delay":
            wait_s = self._random.uniform(0, 0.3)
        event = "step" if moment == "step" else "save"
        rank = self._random.randrange(self._ranks)

        def is_there() -> bool:
            life.hear()
            steps = [note["step"] for note in life.notes[rank] if note["event"] == event]
            if event == "save":
                return len(steps) >= number
            return len([step for step in steps if (step + 1) % _EVERY == 0]) >= number

        return _after(is_there, wait_s)

    def _victims(self, life: Life, who: str) -> list[int]:
        life.hear()
        pids = [process.pid for process in life.ranks]
        one = self._random.randrange(self._ranks)
        workers = [pid for rank in range(self._ranks) for pid in life.workers(rank)]
        found = {
            "rank": [pids[one]],
            "worker": life.workers(one),
            "rank and worker": [pids[one], *life.workers(one)],
            "ranks": pids,
            "all": [*pids, *workers],
        }[who]
        return self._random.sample(found, len(found))

    def _lose_disk(self, life: Life) -> None:
        """A node is gone with all that ran there, and has a new disk."""
        lost = self._random.randrange(self._ranks)
        kill(life.workers(lost))
        place, until = self._disks[lost] / "ck", time.monotonic() + LIMIT_S
        while place.exists():
            assert time.monotonic() < until
            shutil.rmtree(place, ignore_errors=True)
        self.figures.disks += 1

    def _hear(self, life: Life, least: int, reference: Reference | None) -> None:
        """What a start says: where it began, what it trained on, what is committed.

        `least`: step of what was committed before it.
        """
        begun = {step for steps in life.steps_of("start") for step in steps}
        assert len(begun) <= 1, f"ranks went on from several steps: {begun}"
        for step in begun:
            assert step >= least, f"lost: it went on from step {step}, and {least} was committed"
            self.figures.resumed += step > 0
        names = {n["id"] for said in life.notes for n in said if n["event"] == "committed"}
        with contextlib.suppress(FileNotFoundError):
            events = [event for event in read_events(self.root) if event["event"] == "durable"]
            names.update(event["checkpoint"] for event in events)
        # others are of the product itself, which deletes them when a newer one is there
        self._said |= {int(name.partition("=")[2]) for name in names if name.startswith("step=")}
        for rank, said in enumerate(life.notes):
            new = {n["step"]: n["samples"] for n in said if n["event"] == "step"}
            if reference is not None:
                wanted = reference.samples[rank]
                assert all(wanted[step] == some for step, some in new.items()), "other samples"
            self.samples[rank] |= new

    def _check(self, reference: Reference) -> None:
        """All that is committed is whole and of one step, and all is there that somebody told."""
        there = check_place(self.place, reference)
        self.figures.read += len(there)
        if self.place == self.root:
            check_nothing_partial(self.root)
        if self.store is not None and self.place != self.store:
            self.figures.read += len(check_place(self.store, reference))
        there |= self._steps()  # what a worker replaced meanwhile
        if self._job["keep"] == -1:
            assert self._said <= there, f"lost: {self._said - there}"
        elif self._said:
            assert max(there, default=0) >= max(self._said), "lost: the newest"


def _after(is_there: Callable[[], bool], wait_s: float) -> Callable[[], bool]:
    """The same, so many seconds later."""
    since: list[float] = []

    def later() -> bool:
        if not since and is_there():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + wait_s

    return later


def torture(
    fork_server: ForkServer, folder: Path, kind: str, seed: int, kills: int, **layout: Any
) -> Figures:
    """Kill trainings until there were so many kills, and compare each end; `layout`: `Training`'s.

    Raises:
        AssertionError: something was lost, partial or mixed, a process hung, or an end differs.
    """
    reference = _reference(fork_server, folder / "training", kind, seed, **layout)
    total = Figures()
    for number in itertools.count():
        left = kills - total.kills.total()
        if left <= 0:
            return total
        training = Training(fork_server, folder / "training", kind, seed * 1000 + number, **layout)
        try:
            training.run(min(left, _MOST_KILLS), reference)
            assert training.ends == reference.ends, "it is not the run that nobody killed"
            assert training.samples == reference.samples
            assert not left_over(training.root)
        finally:
            training.close()
        shutil.rmtree(training.folder)
        total.add(training.figures)
        print(json.dumps({"kind": kind, "seed": seed, **vars(total)}), flush=True)
    raise AssertionError


def _reference(
    fork_server: ForkServer, folder: Path, kind: str, seed: int, **layout: Any
) -> Reference:
    """The same training, in the same folder, which nobody kills."""
    training = Training(fork_server, folder, kind, seed, every=1, **layout | {"keep": -1})
    try:
        training.run()
        check_steps_differ(training.place)
        found = list_committed(training.place).found
        files = {one.manifest.step: sums_of(one) for one in found}
    finally:
        training.close()
    shutil.rmtree(folder)
    return Reference(files, training.samples, training.ends)
