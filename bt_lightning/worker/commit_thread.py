"""Thread of the worker that commits images of checkpoints from the arenas.

One image after the other, in the order of the saves. An image that it gets twice (a new worker is
given again what a killed one had) is committed once.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.atomic_directory import sweep_temporaries
from bt_lightning.manifest import Manifest
from bt_lightning.part_messages import AwaitParts, MissPart, PartDurable
from bt_lightning.worker.held_image import ImageHolder
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, Published, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.worker.commit_lock import CommitLock
    from bt_lightning.worker.commit_to_disk_or_store import ImageCommitter
    from bt_lightning.worker.write_part import PartWriter
    from bt_lightning.worker_messages import WorkerConfig

Outcome = Committed | CommitFailed | Withdrawn


class CommitThread:
    """The queue of images, and the thread that writes them.

    `done` is called for each outcome, and with None when `idle` may have changed.
    """

    def __init__(
        self,
        config: WorkerConfig,
        committer: ImageCommitter,
        parts: PartWriter,
        lock: CommitLock,
        done: Callable[[Outcome | PartDurable | Published | None], None],
    ) -> None:
        """A worker that only adds parts leaves `lock` alone; a standby worker commits nothing."""
        self._holder = ImageHolder(Path(config.root), config.hold_s)
        self._committer = committer
        self._parts = parts
        self._removals = parts.removals
        self._lock = lock if config.leads else None
        self._done = done
        self._arenas: dict[int, memoryview] = {}
        self._jobs: deque[tuple[CommitImage, memoryview] | tuple[MissPart | AwaitParts, None]]
        self._jobs = deque()
        """Images each with the memory of its arena, which may be dropped meanwhile."""
        self._working = False
        self._working_on: int | None = None
        self._leaving = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning commits")
        if not config.standby:
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every image that was put has its outcome."""
        with self._changed:
            return not self._jobs and not self._working

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Map the arena of `size` bytes; `descriptor` is the holder's from now on."""
        self._holder.share(index, descriptor)
        self._arenas[index] = memoryview(mmap.mmap(descriptor, size))

    def drop(self, index: int) -> None:
        """Forget an arena; the kernel frees its memory with the last mapping."""
        self._arenas.pop(index, None)
        self._holder.drop(index)

    def put(self, job: CommitImage | MissPart | AwaitParts) -> None:
        """Queue `job` behind those that were put before; never waits."""
        with self._changed:
            if isinstance(job, CommitImage):
                self._jobs.append((job, self._arenas[job.arena]))
            else:
                self._jobs.append((job, None))
            self._changed.notify()

    def withdraw(self, number: int) -> None:
        """Drop a job that has not begun; any other gets its own outcome."""
        with self._changed:
            found = [
                waiting
                for waiting in self._jobs
                if isinstance(waiting[0], CommitImage) and waiting[0].number == number
            ]
            for waiting in found:
                self._jobs.remove(waiting)
        for job, _ in found:
            self._removals.ended(number)
            if job.part is not None:
                why = "a newer save took its place"
                self.put(MissPart(number=number, part=job.part, why=why, cause="dropped"))
            self._done(Withdrawn(number))

    def has(self, number: int) -> bool:
        """Whether the job of this number waits, or is under way."""
        with self._changed:
            return number == self._working_on or any(job.number == number for job, _ in self._jobs)

    def leave(self) -> None:
        """Expect no more jobs: after the last one the commit lock is released, for a new run."""
        with self._changed:
            self._leaving = True
            self._changed.notify()

    def hurry(self) -> None:
        """SIGTERM: nothing is held behind the last commit."""
        self._holder.give_up()

    def hold(self, deadline: threading.Timer | None) -> None:
        """The last call: keep what a killed trainer had saved, as `ImageHolder.wait`."""
        if self._leaving and self._holder.has_image:
            self._thread.join()  # it offers the image
            self._holder.wait(deadline)

    def _run(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # a disk that fails: the store may take the images
                self._lock.acquire()  # a new run waits: this commit may be its newest checkpoint
                sweep_temporaries(self._lock.root)  # of a worker that was killed over its commit
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._leaving)
                if not self._jobs:
                    break
                job, arena = self._jobs.popleft()
                self._working, self._working_on = True, job.number
            events = self._do(job, arena)
            del arena  # or a dropped one would stay until the next job
            with self._changed:
                self._working_on = None
            for event in events:
                self._done(event)  # before this counts as idle: the process may end then
            with self._changed:
                self._working = False
            self._done(None)
        self._parts.settle()
        self._holder.offer()  # before a new run looks what there is
        if self._lock is not None:
            self._lock.release()

    def _do(
        self, job: CommitImage | MissPart | AwaitParts, arena: memoryview | None
    ) -> Sequence[Outcome | PartDurable | Published]:
        if isinstance(job, MissPart):
            return self._parts.miss(job)
        if isinstance(job, AwaitParts):
            return self._parts.resume(job)
        assert arena is not None
        if job.part is not None:
            added = self._parts.add(job, arena)
            if self._parts.added:
                self._holder.note(job, self._parts.added)
            return added
        try:
            events = self._committer.commit(job, arena)
        except (CheckpointError, OSError) as error:
            events = [CommitFailed(number=job.number, error=error)]
        committed = [event.manifest for event in events if isinstance(event, Committed)]
        manifests = [Manifest.from_bytes(manifest, "an image") for manifest in committed]
        for manifest in manifests:
            self._holder.note(job, manifest.files)
        self._removals.ended(job.number, manifests[0].digest if manifests else None)
        return events
