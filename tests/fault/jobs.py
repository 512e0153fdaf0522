"""Jobs of `bt-lightning run` that are broken off at seeded random moments, and started again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.path_layout import DOT_DIR, MARKER, job_prefix

SCRIPT = Path(__file__).with_name("unaware.py")
LIMIT_S = 180.0
"""Whatever takes longer is a hang: a start of two processes takes up to 40 s on a busy machine."""
LAST = {116, 118, 120}
REFUSED = 31
STOPPED = {128 + signal.SIGTERM, -signal.SIGTERM, 1}
"""Of a runner that was told to end; 1: one of two processes lost the other in its first batch."""
EVENTS = ("stop", "runner", "training", "worker", "everything", "preempt")
_AGAIN = 2
"""Attempts that one runner begins anew: before each it waits for longer."""


class Life:
    """One `bt-lightning run` with all that it started; they share the pipe that is read here."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self._said = b""
        self._errors = folder / "errors"
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bt_lightning", "run", *words],
                cwd=folder,
                env={**os.environ, "BT_SCRATCH_DIR": str(folder / "scratch")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._known: set[psutil.Process] = {psutil.Process(self.process.pid)}

    def line(self, within_s: float = LIMIT_S) -> str | None:
        """The next line that the training prints; None if nothing comes; empty: all have ended."""
        until = time.monotonic() + within_s
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                assert within_s < LIMIT_S, f"hung: {self.errors()}"
                return None
            data = os.read(pipe, 65536)
            if not data:
                return ""
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def rest(self) -> list[str]:
        """Wait until every process that it started is gone; what they had to say."""
        lines = list(iter(self.line, ""))
        self.process.wait(LIMIT_S)
        return lines

    def close(self) -> None:
        """Leave nothing of it, when a test fails."""
        for process in self._known:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.stdout.close()
        self.process.wait(LIMIT_S)

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-8000:]

    def living(self, part: str) -> list[psutil.Process]:
        """`training`: its ranks; `worker`: workers, the runner's and the training's."""
        for parent in list(self._known):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known.update(parent.children(recursive=True))
        mark = {"training": SCRIPT.name, "worker": "spawn_main"}[part]
        found = []
        for process in self._known:
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has no words
                if any(mark in w for w in process.cmdline()) and process.pid != self.process.pid:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)


class Job:
    """One job from its first start to its last; `chance` draws what befalls it."""

    def __init__(self, folder: Path, processes: int, seed: int) -> None:
        self.folder, self.processes, self.chance = folder, processes, random.Random(seed)
        self.root, self.store = folder / "ck", folder / "store"
        folder.mkdir(parents=True)
        self.befell = dict.fromkeys((*EVENTS, "refused", "disk"), 0)
        self.digests: set[str] = set()
        self.begun: set[int] = set()
        """Steps that attempts went on from."""
        self._least = 0
        """Step of the newest checkpoint that must be there."""
        self._kept: list[int] = []
        """Steps of what ModelCheckpoint keeps, as it last said."""
        self._committed: set[int] = set()
        self._let_go: set[int] = set()
        """Steps of what ModelCheckpoint may have let go with a save over which it was broken off:
        it asks for the removal after the save, and never again."""

    @property
    def preemptions(self) -> int:
        return sum(self.befell[name] for name in EVENTS)

    def start(self) -> Life:
        where = ["--store", str(self.store), "--dir", str(self.root), "--project", "p"]
        command = [sys.executable, str(SCRIPT), str(self.processes)]
        return Life([*where, "--job-id", "j", "--retries", "99", "--", *command], self.folder)

    def run(self, most: int) -> None:
        """Start it until it completes, and break it off `most` times at the most."""
        complete = False
        while not complete:
            with contextlib.closing(self.start()) as life:
                self._live(life, most)
                self._refuse(life)
                self._hear(life.rest())
            complete = life.process.returncode == 0
            self._check()
            if not complete and self.chance.random() < 0.25:
                shutil.rmtree(self.root, ignore_errors=True)
                self.befell["disk"] += 1
                self._least, self._committed = _newest(self.store), set()
        self._check_end()

    def _live(self, life: Life, most: int) -> None:
        """Let things befall it until its runner ends, by itself or by one of them."""
        again = 0
        while True:
            if self.preemptions >= most:
                calm = self._until(life, None)
            elif self.chance.random() < 0.2:  # before it trains
                calm = self._wait(life, self.chance.uniform(0, 12))
            else:
                calm = self._until(life, self.chance.randint(1, 45))
            if not calm:
                assert life.process.wait(LIMIT_S) == 0, life.errors()
                return
            events = EVENTS if again < _AGAIN else ("stop", "runner", "worker", "everything")
            event = self.chance.choice(events)
            hit = self._befall(life, event)
            self.befell[event] += hit
            again += event in {"training", "preempt"}
            if event in {"stop", "runner", "everything"}:
                code = life.process.wait(LIMIT_S)
                known = STOPPED if event == "stop" else {-signal.SIGKILL}
                assert code in known | {0}, f"{code}: {life.errors()}"
                return

    def _befall(self, life: Life, event: str) -> bool:
        """Whether there was something that it could befall."""
        self._least = max(self._least, _newest(self.root))
        chance, runner = self.chance, psutil.Process(life.process.pid)
        training, workers = life.living("training"), life.living("worker")
        deed = psutil.Process.terminate if event in {"stop", "preempt"} else psutil.Process.kill
        victims = {
            "stop": [runner],
            "runner": [runner],
            "training": chance.sample(training, min(len(training), 1)),
            "preempt": chance.sample(training, min(len(training), 1)),
            "worker": chance.sample(workers, min(len(workers), 1)),
            "everything": [runner, *training, *workers],
        }[event]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                deed(victim)
        return bool(victims)

    def _refuse(self, life: Life) -> None:
        """Its runner may be gone before its training: while that goes on, nobody gets the job."""
        while life.process.poll() is not None and (orphans := life.living("training")):
            with contextlib.closing(self.start()) as other:
                code = other.process.wait(LIMIT_S)
                said = other.rest()
            if code != REFUSED:  # the training came to its end before the other asked
                assert code == 0, other.errors()
                assert not life.living("training"), "two had the job"
                self._hear(life.rest())
            self._hear(said)
            self.befell["refused"] += code == REFUSED
            if self.chance.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(orphans[0].pid, signal.SIGTERM)

    def _wait(self, life: Life, seconds: float) -> bool:
        """Whether it lives still after that time."""
        until = time.monotonic() + seconds
        while (line := life.line(max(0.0, until - time.monotonic()))) is not None:
            if not line:
                return False
            self._hear([line])
        return True

    def _until(self, life: Life, steps: int | None) -> bool:
        """Let it train so many steps; whether it goes on then."""
        while line := life.line():
            self._hear([line])
            if steps is not None:
                steps -= line.startswith("step")
                if steps <= 0 or (line.startswith("end") and self.chance.random() < 0.3):
                    return self._wait(life, self.chance.uniform(0, 0.02))
        return False

    def _hear(self, lines: list[str]) -> None:
        for line in lines:
            word, *rest = line.split()
            if word == "begin":
                self._let_go.update(self._kept[:1])
                self.begun.add(int(rest[0]))
                assert int(rest[0]) >= self._least, "a committed checkpoint was lost"
            elif word == "step":
                self._kept = sorted(map(int, rest[1:]))
            elif word == "end":
                self.digests.add(rest[0])

    def _check(self) -> None:
        """Nothing runs: what is there is whole, and all is there that is committed and kept."""
        here, there = _steps(self.root), _steps(self.store)
        with contextlib.suppress(FileNotFoundError):
            durable = [e["checkpoint"] for e in read_events(self.root) if e["event"] == "durable"]
            self._committed |= {int(n.split("-")[1]) for n in durable if n.startswith("check")}
        # a save that was under way may have let the oldest go
        wanted = set(self._kept[1:]) & self._committed
        assert wanted <= here | there, f"kept {self._kept}, on disk {here}, in the store {there}"
        newest = max(_newest(self.root), _newest(self.store))
        assert newest >= self._least, "a committed checkpoint was lost"
        self._least = newest

    def _check_end(self) -> None:
        here, there = _steps(self.root), _steps(self.store)
        assert there >= LAST, f"in the store {there}"
        if not self.befell["disk"]:  # it takes with it what waits to be deleted, and what was kept
            assert here >= LAST, f"on disk {here}"
            known = LAST | self.begun | self._let_go
            assert here | there <= known, f"on disk {here}, in the store {there}"
        dot, prefix = self.root / DOT_DIR, self.store / job_prefix("p", "j", 0)
        for path in (dot / "job.json", prefix / ".bt_lightning-job"):
            record = json.loads(path.read_bytes())
            said = record["status"], record["checkpoint_sync_status"], record["waiting"]
            assert said == ("COMPLETED", "COMPLETED", []), path
        for name in ("tmp", "trash", "partial"):
            assert not list((dot / name).glob("*")), f"left in {name}"
        assert not list((dot / "uploads").glob("*.upload.json"))
        assert not list((self.folder / "scratch").iterdir())
        ours = [
            folder for folder in prefix.glob(f"{DOT_DIR}-*") if folder.name != f"{DOT_DIR}-logs"
        ]
        leases = [path for folder in ours for path in folder.rglob("*") if path.is_file()]
        found = {p.relative_to(prefix).parts[0] for p in leases}
        assert not found, f"left in the store: {leases}"
        assert not [p for p in self.store.rglob("*") if p.name == MARKER or p.suffix == ".part"]
        assert not [p.pid for p in psutil.process_iter() if _within(p, self.folder)]


def _within(process: psutil.Process, folder: Path) -> bool:
    """Whether it runs in `folder`, as all do that were started there."""
    with contextlib.suppress(psutil.Error):
        return process.cwd() == str(folder)
    return False


def _steps(place: Path) -> set[int]:
    """Of the checkpoints of ModelCheckpoint that are whole in `place`; all there must be."""
    found, refused, _ = list_committed(place) if place.exists() else ([], [], [])
    assert not refused
    manifests = [verify(checkpoint.path) for checkpoint in found]
    return {m.step for m in manifests if m.checkpoint_id.startswith("checkpoint-")}


def _newest(place: Path) -> int:
    """Step of the newest checkpoint that is committed there, whoever runs."""
    found = list_committed(place)[0] if place.exists() else []
    return max((checkpoint.manifest.step for checkpoint in found), default=0)


def torture(folder: Path, processes: int, seed: int, preemptions: int) -> dict[str, int]:
    """Break jobs off until so much befell them; how often what did."""
    whole = Job(folder / "whole", processes, 0)
    whole.run(0)
    total: dict[str, int] = dict.fromkeys(whole.befell, 0)
    number = 0
    while sum(total[name] for name in EVENTS) < preemptions:
        left = preemptions - sum(total[name] for name in EVENTS)
        job = Job(folder / f"job-{number}", processes, seed * 1000 + number)
        job.run(min(left, 8))
        assert job.digests == whole.digests, "the job is not the one that nobody broke off"
        total = {name: total[name] + job.befell[name] for name in total}
        shutil.rmtree(job.folder)
        number += 1
        print(f"job {number}: {total}", flush=True)
    return total
