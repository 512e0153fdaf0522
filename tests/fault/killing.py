"""Runs of 40 saves that are killed at seeded random moments: trainer, worker, or both."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.removal_requests import requested_local_removals
from bt_lightning.path_layout import DOT_DIR, MARKER
from tests.fault.nursery import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.nursery import Nursery

JOB = Path(__file__).with_name("job.py")


class Run:
    """One training run that is killed and started again until it ends."""

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        seed: int,
        disk: Callable[[], Path] | None = None,
        victims: tuple[str, ...] = ("trainer", "worker", "both"),
        **job: object,
    ) -> None:
        """`disk` makes the checkpoint directory; `job` are further arguments of `job.train`.

        `victims`: what may be killed; `told`: the trainer gets SIGTERM instead.
        """
        self.victims = victims
        self.nursery, self.random = nursery, random.Random(seed)
        self.folder, self.store = folder, folder / "store"
        self.root = folder / "ck" if disk is None else disk()
        self.job = job
        self.journal = folder / "journal.jsonl"
        self.workers: set[psutil.Process] = set()
        self.kills = 0

    def command(self, life: int, fresh: bool = True) -> dict[str, object]:
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = {"root": self.root, "store": self.store.as_uri(), "journal": self.journal}
        seed = 1 if fresh else 100 + life
        return {**{n: str(v) for n, v in paths.items()}, "life": life, "seed": seed, **self.job}

    def notes(self) -> list[dict[str, object]]:
        text = self.journal.read_text() if self.journal.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def life(self, life: int, fresh: bool, within_s: float, victims: str) -> bool:
        """Start the job and kill `victims` at a random moment; whether it came to its end."""
        pid = self.nursery.start(**self.command(life, fresh))
        trainer, handle = psutil.Process(pid), os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([handle], [], [], self.random.uniform(0, within_s))
            workers = [] if ended else self._workers_of(trainer)
            self.workers.update(workers)
            if not ended and victims in {"worker", "both"}:
                for worker in workers:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.kill()
                self.kills += bool(workers)
            if not ended and victims == "worker":
                ended, _, _ = select.select([handle], [], [], LIMIT_S)
            if not ended:
                number = signal.SIGTERM if victims == "told" else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):  # it came to its end just now
                    signal.pidfd_send_signal(handle, number)
                    self.kills += victims in {"trainer", "told"} or not workers
        finally:
            os.close(handle)
        status = self.nursery.status()
        errors = Path(f"{self.journal}.err")
        killed = {-signal.SIGKILL} if victims != "told" else {-signal.SIGTERM, 128 + signal.SIGTERM}
        assert status in {0, *killed}, errors.read_text()
        return status == 0

    def _workers_of(self, trainer: psutil.Process) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in trainer.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as none
                    if "spawn_main" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def workers_end(self) -> None:
        _, alive = psutil.wait_procs(self.workers, timeout=LIMIT_S)
        assert not alive, "a worker outlived its deadline"

    def check_whole(self) -> None:
        """Whatever is offered, on disk or in the store, is complete and undamaged."""
        for place in (self.root, self.store):
            found, refused, _ = list_committed(place)
            assert not refused
            for checkpoint in found:
                with contextlib.suppress(CheckpointNotFoundError):  # a worker may still delete
                    verify(checkpoint.path)

    def newest_committed(self, life: int) -> int:
        """Step of the newest checkpoint that a save of this life returned from."""
        notes = [n for n in self.notes() if n["event"] == "committed" and n["life"] == life]
        return max((n["step"] for n in notes), default=0)

    def newest_in_store(self) -> int:
        stored, _, _ = list_committed(self.store)
        return stored[0].manifest.step if stored else 0

    def begun_at(self, life: int) -> int | None:
        """Step that a life began training at; None if it did not come that far."""
        notes = [n for n in self.notes() if n["event"] == "start" and n["life"] == life]
        return notes[0]["step"] if notes else None

    def check_clean(self) -> None:
        self.workers_end()
        for folder in ("tmp", "trash"):
            place = self.root / DOT_DIR / folder
            assert not place.exists() or not list(place.iterdir()), f"left in {folder}"
        rubbish = [p for p in self.store.rglob("*") if p.name == MARKER or p.suffix == ".part"]
        assert not rubbish
        on_disk = {c.manifest.digest for c in list_committed(self.root)[0]}
        published = {c.manifest.digest for c in list_committed(self.store)[0]}
        requested = requested_local_removals(self.root).keys()
        assert on_disk - requested <= published, "a committed checkpoint did not reach the store"
        # what the last life resumed from may not go before the next one
        assert requested <= on_disk | published, "a removal was forgotten"


def reference(nursery: Nursery, folder: Path, **job: object) -> tuple[str, float]:
    """Digest and seconds of the uninterrupted run."""
    run = Run(nursery, folder, 0, **job)
    started = time.monotonic()
    assert nursery.start(**run.command(0))
    assert nursery.status() == 0
    run.check_clean()
    end = run.notes()[-1]
    assert end["event"] == "end"
    return end["digest"], time.monotonic() - started


def torture(
    nursery: Nursery,
    folder: Path,
    seed: int,
    kills: int,
    disk: Callable[[], Path] | None = None,
    victims: tuple[str, ...] = ("trainer", "worker", "both"),
    **job: object,
) -> int:
    """Kill runs again and again, check after each life, and compare each end; returns the kills."""
    digest, seconds = reference(nursery, folder / "reference", **job)
    total = 0
    for number in itertools.count():  # not the kills so far: a run without one would come again
        if total >= kills:
            break
        own = folder / f"run-{number}"
        run = Run(nursery, own, seed * 1000 + number, disk, victims, **job)
        seconds = min(seconds, survive(run, seconds))
        end = run.notes()[-1]
        assert end["event"] == "end"
        assert end["digest"] == digest, "the resumed run is not the uninterrupted one"
        run.check_clean()
        total += run.kills
        shutil.rmtree(run.folder)
    return total


def survive(run: Run, seconds: float) -> float:
    """Start the run until it comes to its end; the seconds of it, if no kill fell into it."""
    least, life, ended, started = 0, 0, False, time.monotonic()
    while not ended:
        victims = run.random.choice(run.victims)
        calm = run.kills > 12
        ended = run.life(life, least == 0, 1e6 if calm else seconds, victims)
        run.check_whole()
        begun = run.begun_at(life)
        assert begun is None or begun >= least, "a committed checkpoint was lost"
        least = max(least, run.newest_committed(life))
        lost_disk = not ended and run.random.random() < 0.2
        if lost_disk or run.random.random() < 0.5:
            run.workers_end()
        if lost_disk:
            shutil.rmtree(run.root, ignore_errors=True)
            least = run.newest_in_store()
        life += 1
    return seconds if run.kills else time.monotonic() - started
