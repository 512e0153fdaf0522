"""Thread of the worker that commits images of checkpoints from the arenas.

One image after the other, in the order of the saves. An image that it gets twice (a new worker is
given again what a killed one had) is committed once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.atomic_directory import sweep_temporaries
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.manifest import Manifest
from bt_lightning.removal_requester import Requester
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, Published, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.worker.commit_lock import CommitLock
    from bt_lightning.worker.commit_to_disk_or_store import ImageCommitter

Outcome = Committed | CommitFailed | Withdrawn
_REMEMBERED = 64


class CommitThread:
    """The queue of images, and the thread that writes them.

    `done` is called for each outcome, and with None when `idle` may have changed.
    """

    def __init__(
        self,
        root: Path,
        committer: ImageCommitter,
        lock: CommitLock,
        done: Callable[[Outcome | Published | None], None],
        *,
        start: bool = True,
    ) -> None:
        """`start=False` for a standby worker, which gets no images."""
        self._root = root
        self._committer = committer
        self._lock = lock
        self._done = done
        self._arenas: dict[int, memoryview] = {}
        self._jobs: deque[tuple[CommitImage, memoryview]] = deque()
        """Each with the memory of its arena, which may be dropped meanwhile."""
        self._working = False
        self._working_on: int | None = None
        self._to_remove: set[int] = set()
        """Numbers of queued jobs, or of the one under way, whose checkpoint is to be removed."""
        self._digests: dict[int, str] = {}
        """Manifest digest of each of the last jobs, by number."""
        self._leaving = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning commits")
        if start:
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every image that was put has its outcome."""
        with self._changed:
            return not self._jobs and not self._working

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Map the arena of `size` bytes, and close `descriptor`."""
        try:
            self._arenas[index] = memoryview(mmap.mmap(descriptor, size))
        finally:
            os.close(descriptor)

    def drop(self, index: int) -> None:
        """Forget an arena; the kernel frees its memory with the last mapping."""
        self._arenas.pop(index, None)

    def put(self, job: CommitImage) -> None:
        """Queue `job` behind those that were put before; never waits."""
        with self._changed:
            self._jobs.append((job, self._arenas[job.arena]))
            self._changed.notify()

    def withdraw(self, number: int) -> None:
        """Drop a job that has not begun; any other gets its own outcome."""
        with self._changed:
            found = [waiting for waiting in self._jobs if waiting[0].number == number]
            for waiting in found:
                self._jobs.remove(waiting)
            self._to_remove.discard(number)
        for _ in found:
            self._done(Withdrawn(number))

    def remove_when_committed(self, number: int) -> None:
        """Request the removal of what job `number` committed, or will commit."""
        with self._changed:
            digest = self._digests.get(number)
            if digest is None and (number == self._working_on or self._is_queued(number)):
                self._to_remove.add(number)
        if digest is not None:
            self._request_removal(digest)

    def _is_queued(self, number: int) -> bool:
        return any(job.number == number for job, _ in self._jobs)

    def _request_removal(self, digest: str) -> None:
        with contextlib.suppress(OSError):  # the training process asks as well
            request_local_removal(self._root, digest, Requester.TRAINING)

    def _remember(self, number: int, events: Sequence[Outcome | Published]) -> None:
        """Remember what a job committed; request its removal if it is unwanted by then."""
        committed = [event.manifest for event in events if isinstance(event, Committed)]
        digests = [Manifest.from_bytes(manifest, "an image").digest for manifest in committed]
        with self._changed:
            self._digests.update((number, digest) for digest in digests)
            while len(self._digests) > _REMEMBERED:
                del self._digests[next(iter(self._digests))]
            asked = number in self._to_remove
            self._to_remove.discard(number)
            self._working_on = None
        for digest in digests if asked else ():
            self._request_removal(digest)

    def leave(self) -> None:
        """Expect no more jobs: after the last one the commit lock is released, for a new run."""
        with self._changed:
            self._leaving = True
            self._changed.notify()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a disk that fails: the store may take the images
            self._lock.acquire()  # a new run waits for it: this commit may be its newest checkpoint
            sweep_temporaries(self._root)  # of a worker that was killed over its commit
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._leaving)
                if not self._jobs:
                    break
                job, arena = self._jobs.popleft()
                self._working, self._working_on = True, job.number
            try:
                events = self._committer.commit(job, arena)
            except (CheckpointError, OSError) as error:
                events = [CommitFailed(number=job.number, error=error)]
            self._remember(job.number, events)
            del arena  # or a dropped one would stay until the next job
            for event in events:
                self._done(event)  # before this counts as idle: the process may end then
            with self._changed:
                self._working = False
            self._done(None)
        self._lock.release()
