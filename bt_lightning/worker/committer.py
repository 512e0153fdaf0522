"""Commits images of checkpoints from the arenas to the local disk; a thread of the worker.

One image after the other, in the order of the saves. What it is told twice (a worker that was
killed is started again, and told again) it commits once.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError
from bt_lightning.layout import DOT_DIR, check_checkpoint_id
from bt_lightning.localdir.commit import commit_files, write_hint
from bt_lightning.localdir.committed import read_manifest
from bt_lightning.localdir.direct import BLOCK, write_image
from bt_lightning.localdir.durable import lock, sweep_temporaries, try_lock
from bt_lightning.localdir.events import note
from bt_lightning.manifest import FileEntry, Manifest
from bt_lightning.messages import CommitFailed, CommitImage, Committed, FileImage, Withdrawn
from bt_lightning.worker.ahead import LentSource, Offer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_PATIENCE_S = 0.02
_AHEAD_BYTES = 8 * 1024 * 1024
"""Smaller files are sent in a moment, after the commit."""

Outcome = Committed | CommitFailed | Withdrawn


class Committer:
    """The queue of images, and the thread that writes them.

    `done` is called for each outcome, and with None when `idle` may have changed; `offer` when a
    large file of an image is described, and may be sent before it is on the disk.
    """

    def __init__(
        self,
        root: Path,
        done: Callable[[Outcome | None], None],
        offer: Callable[[Offer], None] = lambda _: None,
        *,
        start: bool = True,
    ) -> None:
        """`start=False` for a worker that no training process gives images to."""
        self._root = root
        self._done = done
        self._offer = offer
        self._arenas: dict[int, memoryview] = {}
        self._jobs: deque[CommitImage] = deque()
        self._working = False
        self._leaving = False
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._written: dict[int, tuple[Path, FileEntry]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning commits")
        if start:
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every image that was put is committed, or has failed."""
        with self._changed:
            return not self._jobs and not self._working

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Map an arena; takes the descriptor over."""
        try:
            self._arenas[index] = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def drop(self, index: int) -> None:
        """Forget an arena; its memory goes with the last one who maps it."""
        self._arenas.pop(index, None)

    def put(self, job: CommitImage) -> None:
        """Commit `job` after those that were put before; never waits."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def withdraw(self, number: int) -> None:
        """Give up a job that has not begun; any other has, or will have, its own outcome."""
        with self._changed:
            found = [job for job in self._jobs if job.number == number]
            for job in found:
                self._jobs.remove(job)
        for _ in found:
            self._done(Withdrawn(number))

    def leave(self) -> None:
        """No more jobs will come: when the last is done, a new run need not wait any longer."""
        with self._changed:
            self._leaving = True
            self._changed.notify()

    def _run(self) -> None:
        self._own()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._leaving)
                if not self._jobs:
                    self._disown()
                    return
                job = self._jobs.popleft()
                self._working = True
            try:
                outcome: Outcome = self._commit(job)
            except (CheckpointError, OSError) as error:
                outcome = CommitFailed(number=job.number, error=error)
            self._done(outcome)  # before this counts as idle: the process may end then
            with self._changed:
                self._working = False
            self._done(None)

    def _commit(self, job: CommitImage) -> Committed | CommitFailed:
        started, cpu = time.monotonic(), time.process_time()
        final = self._root / check_checkpoint_id(job.checkpoint_id)
        manifest = _standing(final)
        if manifest is None or manifest.created_at != job.facts["created_at"]:
            generation = manifest.generation + 1 if manifest is not None else 1
            manifest = self._write(job, final, generation)
        outcome = Committed(
            number=job.number,
            manifest=manifest.to_bytes(),
            write_s=time.monotonic() - started,
            durable_s=time.time() - job.began,
            cpu_s=time.process_time() - cpu,
        )
        with contextlib.suppress(OSError):  # neither is a checkpoint
            write_hint(self._root, manifest.checkpoint_id, manifest.step)
            note(
                self._root,
                "durable",
                number=job.number,
                checkpoint=manifest.checkpoint_id,
                bytes=manifest.size,
                write_s=outcome.write_s,
                local_durable_s=outcome.durable_s,
                cpu_s=outcome.cpu_s,
            )
        return outcome

    def _write(self, job: CommitImage, final: Path, generation: int) -> Manifest:
        facts: dict[str, Any] = dict(job.facts)
        offer = Offer(job.checkpoint_id, generation)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            return Manifest(
                checkpoint_id=job.checkpoint_id, generation=generation, files=entries, **facts
            )

        writers = {image.path: partial(self._file, job.arena, image, offer) for image in job.files}
        committed = None
        try:
            manifest = commit_files(final, self._root, writers, describe)
            committed = final
        finally:
            offer.take_back(committed)  # before the arena is anybody else's
        self._written = {
            image.content: (final / image.path, entry)
            for image, entry in zip(job.files, manifest.files, strict=True)
        }
        return manifest

    def _file(
        self, arena: int, image: FileImage, offer: Offer, target: Path, path: str
    ) -> FileEntry:
        """Write one file; or link it, if its bytes are those of a file of the last checkpoint."""
        known = self._written.get(image.content)
        if known is not None and known[1].path == path:
            try:
                os.link(known[0], target)
            except OSError:
                pass  # it is gone, or this file system has no links
            else:
                return known[1]
        end = image.offset + -(-image.size // BLOCK) * BLOCK
        view = self._arenas[arena][image.offset : end]

        def described(entry: FileEntry) -> None:
            if entry.size >= _AHEAD_BYTES:
                offer.add(path, LentSource(view[: entry.size], entry))
                self._offer(offer)

        return write_image(target, path, view, image.size, described)

    def _own(self) -> None:
        """Hold the lock that a new run waits for: this commit may be its newest checkpoint."""
        (self._root / DOT_DIR).mkdir(parents=True, exist_ok=True)
        self._owner = os.open(commit_lock(self._root), os.O_RDWR | os.O_CREAT, 0o666)
        lock(self._owner, fcntl.LOCK_EX)
        sweep_temporaries(self._root)  # of a worker that was killed over its commit

    def _disown(self) -> None:
        assert self._owner is not None
        os.close(self._owner)
        self._owner = None


def wait_for_commits(root: Path, limit_s: float) -> bool:
    """Wait until no earlier run's worker commits under `root`: it may hold its newest checkpoint.

    False if one still does at the limit, or its training process still lives.

    Called in the training process before it looks for what to resume from.
    """
    until = time.monotonic() + limit_s
    try:
        descriptor = os.open(commit_lock(root), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        while not (free := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(_PATIENCE_S)
        return free
    finally:
        os.close(descriptor)


def commit_lock(root: Path) -> Path:
    """The file whose lock says that a worker commits under `root`, or may be told to."""
    return root / DOT_DIR / "commit.lock"


def _standing(final: Path) -> Manifest | None:
    """The manifest of what stands at `final`, if it is a whole checkpoint."""
    try:
        return read_manifest(final)
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return None
