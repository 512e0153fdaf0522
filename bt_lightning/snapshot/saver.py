"""Saves that do not hold up training: snapshot into an arena, commit in the worker.

Every public method is called on the training thread of the rank that writes. One thread of ours
copies, and hands complete images to the worker; it decides nothing.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from bt_lightning.errors import ArenaTooLargeError
from bt_lightning.snapshot.arena_layout import place_files
from bt_lightning.snapshot.arena_pool import ArenaPool
from bt_lightning.snapshot.capture import Capture, Streams
from bt_lightning.snapshot.copy_threads import copy_threads
from bt_lightning.snapshot.host_copies import HostCopier, Sorter
from bt_lightning.snapshot.optimizer_guard import OptimizerGuard
from bt_lightning.snapshot.reuse_snapshot import PreviousSnapshot
from bt_lightning.snapshot.save_record import SaveRecord, SnapshotOptions, too_slow, torn
from bt_lightning.snapshot.state_files import Memory, Snapshot
from bt_lightning.worker.worker_handle import unlimited
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from bt_lightning.manifest import ManifestFacts
    from bt_lightning.worker.worker_handle import Worker

_WAIT_S = 3600.0
"""Longest wait for a disk to take the save before."""
_LOOK_S = 1.0


class Saver:
    """Takes snapshots and sees them committed."""

    def __init__(
        self,
        worker: Worker,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        pump: Callable[[float], None],
        options: SnapshotOptions,
        *,
        pinned_for: torch.device | None = None,
    ) -> None:
        """`pump(timeout_s)` waits for events of the worker, and brings ours to `handle`.

        `pinned_for` is the CUDA device that the state lies on, if it does.
        """
        self.generation: Callable[[str], int] = lambda _: 0
        """The newest generation of an id that this process knows of."""
        self.lazy = options.snapshot != "eager"
        """Whether what only optimizers change is copied beside training."""
        self._worker = worker
        self._optimizers = optimizers
        self._pump = pump
        self._overlap = options.overlap
        self._thread = copy_threads(1, "bt_lightning snapshot")
        self._toucher = copy_threads(1, "bt_lightning touch")  # of arenas that no save waits for
        self._arenas = ArenaPool(
            worker,
            self._toucher.submit,
            count=options.count,
            budget=options.arena_memory,
            pinned_for=pinned_for,
        )
        self._copier = HostCopier()
        self._streams = Streams()
        self._sorter = Sorter()
        self._memory = Memory()
        self._guard = OptimizerGuard(self._before_step)
        self._numbers = 0
        self._last: PreviousSnapshot | None = None
        self._copying: tuple[Capture, SaveRecord] | None = None
        self._copies: dict[int, tuple[Future[None], Capture, SaveRecord]] = {}
        self._open: dict[int, SaveRecord] = {}
        self._ended: list[tuple[SaveRecord, bytes | Exception | None]] = []

    # saving

    def save(
        self,
        checkpoint_id: str,
        take: Callable[[Memory], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
    ) -> SaveRecord:
        """Take a snapshot of what `take` lays out, to be committed as `checkpoint_id`.

        Returns when the state may change except by an optimizer. If there is no memory for a
        snapshot the record says `direct`: the caller has to write it, and to complete the record.

        Raises:
            SaveTimeoutError: the disk has not taken the save before for an hour.
        """
        began, started = time.time(), time.perf_counter()
        self._numbers += 1
        record = SaveRecord(number=self._numbers, checkpoint_id=checkpoint_id, step=0)
        job = self._shared(record, take, facts, began) if self._last is not None else None
        if job is None:
            self.settle()
            slot = self._slot(record)
            if slot is None:
                record.snapshot, record.decision = "none", "skipped"
                record.call_ms = 1000 * (time.perf_counter() - started)
                return record
            try:
                job = self._taken(record, slot, take, facts, began)
            except ArenaTooLargeError:
                record.snapshot = "direct"
                return record
        assert self._last is not None
        record.step = job.facts.step
        record.bytes = sum(image.size for image in job.files)
        self._open[record.number] = record
        capture, warm = self._last.capture, self._arenas.warming(self._last.slot)
        record.call_ms = 1000 * (time.perf_counter() - started)
        future = self._thread.submit(self._finish, capture, job, time.perf_counter(), record, warm)
        self._copies[record.number] = (future, capture, record)
        if not capture.done and record.snapshot != "shared":
            self._copying = (capture, record)
        return record

    def _taken(
        self,
        record: SaveRecord,
        slot: int,
        take: Callable[[Memory], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        began: float,
    ) -> CommitImage:
        snapshot = take(self._memory)
        said = facts(snapshot)  # before anything is in use: it may fail
        placement = place_files(snapshot)
        arena = self._arenas.ready(slot, placement.end)
        copies = self._sorter.sort(snapshot, placement, arena, self._optimizers())
        if any(part.device for part in copies):  # no copy may meet memory that is half registered
            wait([self._arenas.warming(slot)], _WAIT_S)
        capture = Capture(copies, self._copier, lazy=self.lazy)
        for path, file in snapshot.tensor_files.items():
            arena.write(placement.starts[path], file.plan.header)
        for path, content in snapshot.small_files.items():
            arena.write(placement.starts[path], content)
        capture.start(arena, self._streams)
        self._arenas.use(slot, record.number)
        record.snapshot = capture.kind
        images = placement.images(record.number)
        known = {image.path: image for image in images if image.path in snapshot.tensor_files}
        self._last = PreviousSnapshot(
            snapshot, placement, capture, arena, slot, known, placement.end
        )
        after = self.generation(record.checkpoint_id)
        return record.job(arena.index, images, said, began, after)

    def _shared(
        self,
        record: SaveRecord,
        take: Callable[[Memory], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        began: float,
    ) -> CommitImage | None:
        """A save of the very tensors that lie in the arena already, as `last` is.

        None if anything of them is different.
        """
        last = self._last
        assert last is not None
        if last.arena.closed or last.capture.moved():
            return None
        snapshot = take(self._memory)
        said = facts(snapshot)
        placement = last.share(snapshot, self._sorter, self._optimizers())
        if placement is None:
            return None
        self._arenas.use(last.slot, record.number)
        record.snapshot = "shared"
        images = (*last.images.values(), *placement.images(record.number))
        after = self.generation(record.checkpoint_id)
        return record.job(last.arena.index, images, said, began, after)

    def _slot(self, record: SaveRecord) -> int | None:
        """An idle slot, by the overlap policy; None if this save is skipped."""
        if (slot := self._arenas.idle()) is not None:
            return slot
        self._pump(0.0)
        if (slot := self._arenas.idle()) is not None:
            return slot
        if self._overlap == "skip":
            return None
        started = time.perf_counter()
        record.decision = "waited"
        if self._overlap == "latest":
            self._replace()
        self._await(lambda: self._arenas.idle() is not None)
        record.wait_ms = 1000 * (time.perf_counter() - started)
        return self._arenas.idle()

    def _replace(self) -> None:
        """Give up the newest snapshot that waits to be written, if one does."""
        numbers = self._arenas.users_beside(max(self._open))
        self._await(lambda: not self._copies.keys() & numbers)
        for number in numbers:
            self._worker.withdraw(number)

    def _finish(
        self,
        capture: Capture,
        job: CommitImage,
        returned: float,
        record: SaveRecord,
        warm: Future[None],
    ) -> None:
        """On the copy thread: end the copy, and hand the image over."""
        if not capture.done:
            wait([warm])  # pages that are not there yet are slower to copy to
            capture.finish()
        record.copy_ms = 1000 * max(0.0, capture.ended_at - returned)
        if not capture.torn:
            self._worker.commit(job)

    # the copy under way

    def changes(self) -> None:
        """The state may change from here on, except for what only optimizers change."""
        self._last = None  # nothing shares its bytes now, and its tensors need not stay

    def _before_step(self) -> None:
        self.changes()
        self.settle()

    def settle(self) -> None:
        """Return when everything of the state may change."""
        if self._copying is None:
            return
        (capture, record), self._copying = self._copying, None
        started = time.perf_counter()
        capture.guard()
        record.guard_ms += 1000 * (time.perf_counter() - started)

    def prepare(self, size: int) -> None:
        """Have an arena ready for a state of about `size` bytes; does not wait for it."""
        self._arenas.prepare(size)

    def foresee(self, look: Callable[[], Memory]) -> None:
        """Let `look` tell, beside training, what the first save will find."""
        if not self._numbers:
            self._memory.foreseen = self._thread.submit(look)

    # outcomes

    def handle(self, event: Committed | CommitFailed | Withdrawn) -> None:
        """Take what the worker says of a save."""
        record = self._open.pop(event.number)
        self._arenas.release(event.number)
        if isinstance(event, Withdrawn):
            record.decision = "replaced"
            self._ended.append((record, None))
            return
        record.take(event)
        came = event.error if isinstance(event, CommitFailed) else event.manifest
        self._ended.append((record, came))

    @property
    def stirred(self) -> bool:
        """Whether `ended` may come to something."""
        return bool(self._copies or self._ended)

    def ended(self) -> list[tuple[SaveRecord, bytes | Exception | None]]:
        """What came of saves since the last call.

        The manifest's bytes, the error, or None for a save that gave way to a newer one.
        """
        self._collect()
        ended, self._ended = self._ended, []
        return ended

    def pending(self, checkpoint_id: str | None = None) -> int:
        """How many saves, of this id or of any, are neither committed nor given up."""
        ids = [record.checkpoint_id for record in self._open.values()]
        return len(ids) if checkpoint_id is None else ids.count(checkpoint_id)

    def unwanted(self, checkpoint_id: str) -> None:
        """Let the worker remove what is under way of this id, when something newer is safe."""
        for record in list(self._open.values()):
            if record.checkpoint_id == checkpoint_id:
                self._worker.unwanted(record.number)

    def drain(
        self, checkpoint_id: str | None = None, left_s: Callable[[], float] = unlimited
    ) -> None:
        """Wait until every save, or every one of `checkpoint_id`, is committed or given up.

        `left_s` is asked again and again how long that may take: a signal may leave less time.

        Raises:
            SaveTimeoutError: the disk has not taken it in that time, or within an hour.
        """
        self.settle()
        self._await(lambda: not self.pending(checkpoint_id), left_s)

    def close(self) -> None:
        """Give up the threads and the memory; a copy that was begun is handed over first.

        That takes as long as memory does. The worker keeps an arena as long as it has its image.
        """
        self._guard.close()
        self._thread.shutdown()
        self._copier.close()
        self._last = self._copying = None
        self._copies.clear()
        self._sorter.forget()
        self._memory = Memory()
        self._arenas.close()
        self._toucher.shutdown()

    def _collect(self) -> None:
        """Take what the copy thread has come to."""
        for number, (future, capture, record) in list(self._copies.items()):
            if not future.done():
                continue
            del self._copies[number]
            if (error := future.exception()) is None and not capture.torn:
                continue
            self._open.pop(number, None)
            self._arenas.release(number)
            self._ended.append((record, error if isinstance(error, Exception) else torn(record)))

    def _await(self, over: Callable[[], bool], left_s: Callable[[], float] = unlimited) -> None:
        started = time.monotonic()
        self._collect()
        while not over():
            waited_s = time.monotonic() - started
            look_s = min(_LOOK_S, _WAIT_S - waited_s, left_s())
            if look_s <= 0:
                raise too_slow(self._open.values(), waited_s)
            copying = [future for future, _, _ in self._copies.values()]
            if copying:
                wait(copying[:1], look_s)  # what it came to is collected below
            else:
                self._pump(look_s)
            self._collect()
