"""The life of a save: a snapshot into an arena, then a commit by the worker process.

Every public method of `Saver` is called on the training thread of the rank that writes. A copy
thread completes the snapshot and sends it to the worker; it makes no decisions.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.errors import ArenaTooLargeError
from bt_lightning.snapshot.arena_layout import place_files, write_small
from bt_lightning.snapshot.arena_pool import ArenaPool
from bt_lightning.snapshot.copy_and_torn_check import Capture, Streams
from bt_lightning.snapshot.copy_threads import copy_threads
from bt_lightning.snapshot.finish_save import SaveFinisher
from bt_lightning.snapshot.host_copies import CopyPlanner, HostCopier
from bt_lightning.snapshot.open_saves import OpenSaves
from bt_lightning.snapshot.optimizer_guard import OptimizerGuard
from bt_lightning.snapshot.reuse_snapshot import PreviousSnapshot
from bt_lightning.snapshot.save_record import SaveRecord, SnapshotOptions, timeout_error
from bt_lightning.snapshot.state_files import EncodingCache, Snapshot
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from bt_lightning.manifest import ManifestFacts
    from bt_lightning.part_messages import PartDurable
    from bt_lightning.sharding.save_part import SavePart
    from bt_lightning.snapshot.base_table import LeftOut
    from bt_lightning.snapshot.open_saves import SaveOutcome
    from bt_lightning.worker.worker_handle import Worker
    from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, Withdrawn

_WAIT_S = 3600.0
"""Longest wait for the previous save to be written."""
_LOOK_S = 1.0


class Saver:
    """Takes snapshots and tracks them until they are committed or have failed."""

    def __init__(
        self,
        worker: Worker,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        wait_for_events: Callable[[float], None],
        options: SnapshotOptions,
        *,
        pinned_for: torch.device | None = None,
    ) -> None:
        """`wait_for_events(timeout_s)` receives the worker's events and calls `handle` with them.

        `pinned_for` is the CUDA device of the state, None if it is on the CPU.
        """
        self.generation: Callable[[str], int] = lambda _: 0
        """The newest generation of a checkpoint id that this process knows, 0 if none."""
        self.lazy = options.snapshot != "eager"
        """Whether tensors that only optimizers change are copied during training."""
        self._worker = worker
        self._optimizers = optimizers
        self._wait_for_events = wait_for_events
        self._overlap = options.overlap
        self._finisher = SaveFinisher(worker)
        self._toucher = copy_threads(1, "bt_lightning touch")  # populates the pages of arenas
        self._arenas = ArenaPool(
            worker,
            self._toucher.submit,
            count=options.count,
            budget=options.arena_memory,
            pinned_for=pinned_for,
        )
        self._copier = HostCopier()
        self._streams = Streams()
        self._planner = CopyPlanner()
        self._cache = EncodingCache()
        self._guard = OptimizerGuard(self._before_step)
        self._numbers = 0
        self._previous: PreviousSnapshot | None = None
        self._copying: tuple[Capture, SaveRecord] | None = None
        self.open = OpenSaves(worker, self._arenas.release)
        """The saves without an outcome."""

    # saving

    def save(
        self,
        checkpoint_id: str,
        lay_out: Callable[[EncodingCache], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        part: SavePart | None = None,
    ) -> SaveRecord:
        """Take the snapshot that `lay_out` returns, to be committed as `checkpoint_id`.

        `facts` returns the manifest's facts for it; `part` says of which rank it is, if others have
        parts too. Returns when the state may change except by an optimizer. Without memory for an
        arena the record's `snapshot` is `direct`: the caller writes it itself.

        Raises:
            SaveTimeoutError: the previous save was not written within an hour.
        """
        self._numbers += 1
        record = SaveRecord(number=self._numbers, checkpoint_id=checkpoint_id, step=0)
        try:
            return self._save(record, lay_out, facts, part)
        except BaseException as error:
            self.open.miss(record.number, part, f"{type(error).__name__}: {error}")
            raise

    def _save(
        self,
        record: SaveRecord,
        lay_out: Callable[[EncodingCache], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        part: SavePart | None,
    ) -> SaveRecord:
        began, started = time.time(), time.perf_counter()
        message = self._save_shared(record, lay_out, facts, began) if self._previous else None
        if message is None:
            self.finish_copy()
            slot = self._slot(record)
            if slot is None:
                if part is not None:  # the other ranks save, and may have to agree on it
                    lay_out(self._cache)
                record.snapshot, record.decision = "none", "skipped"
                record.call_ms = 1000 * (time.perf_counter() - started)
                self.open.miss(record.number, part, "the save before was not written", "dropped")
                return record
            try:
                message = self._save_new(record, slot, lay_out, facts, began)
            except ArenaTooLargeError:
                record.snapshot = "direct"
                return record
        assert self._previous is not None
        record.step = message.facts.step
        record.bytes = sum(image.size for image in message.files)
        capture, pages_ready = self._previous.capture, self._arenas.pages_ready(self._previous.slot)
        record.call_ms = 1000 * (time.perf_counter() - started)
        snapshot = self._previous.snapshot
        if part is not None:
            of_state = (snapshot.fingerprint, record.step, snapshot.block_bytes)
            message = replace(message, part=part.of_state(*of_state))
        future = self._finisher.finish(capture, message, record, pages_ready, snapshot.left_out)
        self.open.add(record, future, capture)
        if not capture.done and record.snapshot != "shared":
            self._copying = (capture, record)
        return record

    def _save_new(
        self,
        record: SaveRecord,
        slot: int,
        lay_out: Callable[[EncodingCache], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        began: float,
    ) -> CommitImage:
        snapshot = lay_out(self._cache)
        contents = facts(snapshot)  # may fail, so before an arena is in use
        placement = place_files(snapshot)
        arena = self._arenas.arena_for(slot, placement.end)
        copies = self._planner.plan(snapshot, placement, arena, self._optimizers())
        if any(part.device for part in copies):  # CUDA needs the arena registered whole or not
            wait([self._arenas.pages_ready(slot)], _WAIT_S)
        capture = Capture(copies, self._copier, lazy=self.lazy)
        write_small(snapshot, placement, arena)
        capture.start(arena, self._streams)
        self._arenas.use(slot, record.number)
        record.snapshot = capture.kind
        images = placement.images(record.number)
        tensor_images = {one.path: one for one in images if one.path in snapshot.tensor_files}
        self._previous = PreviousSnapshot(
            snapshot, placement, capture, arena, slot, tensor_images, placement.end
        )
        after = self.generation(record.checkpoint_id)
        return record.commit_message(arena.index, images, contents, began, after)

    def _save_shared(
        self,
        record: SaveRecord,
        lay_out: Callable[[EncodingCache], Snapshot],
        facts: Callable[[Snapshot], ManifestFacts],
        began: float,
    ) -> CommitImage | None:
        """Save the same tensors again by sharing the previous snapshot; None if any differs."""
        previous = self._previous
        assert previous is not None
        if previous.arena.closed or previous.capture.versions_changed():
            return None
        snapshot = lay_out(self._cache)
        contents = facts(snapshot)
        placement = previous.share(snapshot, self._planner, self._optimizers())
        if placement is None:
            return None
        self._arenas.use(previous.slot, record.number)
        record.snapshot = "shared"
        images = (*previous.images.values(), *placement.images(record.number))
        after = self.generation(record.checkpoint_id)
        return record.commit_message(previous.arena.index, images, contents, began, after)

    def _slot(self, record: SaveRecord) -> int | None:
        """An idle slot, by the overlap policy; None if this save is skipped."""
        if (slot := self._arenas.idle_slot()) is not None:
            return slot
        self._wait_for_events(0.0)
        if (slot := self._arenas.idle_slot()) is not None:
            return slot
        if self._overlap == "skip":
            return None
        started = time.perf_counter()
        record.decision = "waited"
        if self._overlap == "latest":
            self._replace()
        self._await(lambda: self._arenas.idle_slot() is not None)
        record.wait_ms = 1000 * (time.perf_counter() - started)
        return self._arenas.idle_slot()

    def _replace(self) -> None:
        """Withdraw the newest queued snapshot that the worker has not begun to write."""
        numbers = self._arenas.users_beside(max(self.open.in_arena))
        self._await(lambda: not self.open.copies.keys() & numbers)
        for number in numbers:
            self._worker.withdraw(number)

    # the copy in progress

    def state_may_change(self) -> None:
        """Note that the state may change from here on, except for what only optimizers change."""
        self._previous = None  # no later save shares its bytes, and its tensors are released

    def _before_step(self) -> None:
        self.state_may_change()
        self.finish_copy()
        self._finisher.before_step()

    def finish_copy(self) -> None:
        """Wait until the copy in progress allows the whole state to change."""
        if self._copying is None:
            return
        capture, record = self._copying
        started = time.perf_counter()
        capture.guard()
        record.guard_ms += 1000 * (time.perf_counter() - started)
        if capture.done:  # a device may copy still, which a step on another stream must wait for
            self._copying = None

    def prepare(self, size: int) -> None:
        """Allocate arenas for a state of about `size` bytes in the background."""
        self._arenas.prepare(size)

    def encode_early(self, encode: Callable[[], EncodingCache]) -> None:
        """Run `encode` on the copy thread, to fill the cache before the first save."""
        if not self._numbers:
            self._cache.early = self._finisher.beside_training(encode)

    def verify_early(self, left_out: LeftOut | None) -> None:
        """Look beside training whether what a save would leave out is still the base."""
        if left_out is not None:
            self._finisher.verify(left_out)

    # outcomes

    def handle(self, event: Committed | CommitFailed | Withdrawn | PartDurable) -> None:
        """Record what the worker says of a save."""
        self.open.handle(event)

    @property
    def has_outcomes(self) -> bool:
        """Whether `take_outcomes` may return something."""
        return self.open.has_outcomes

    def take_outcomes(self) -> list[tuple[SaveRecord, SaveOutcome]]:
        """The saves that ended since the last call, each with its outcome."""
        return self.open.take_outcomes()

    def pending(self, checkpoint_id: str | None = None) -> int:
        """Number of saves, of this id or of any, that are neither committed nor failed."""
        return len(self.open.of_id(checkpoint_id))

    def remove_when_committed(self, checkpoint_id: str) -> None:
        """Let the worker remove saves of this id in progress, once a newer one is committed."""
        for record in self.open.of_id(checkpoint_id):
            self._worker.remove_when_committed(record.number)

    def await_own_parts(self, left_s: Callable[[], float] = unlimited) -> None:
        """Wait until every snapshot in an arena is written: a part on this thread comes after it.

        Raises:
            SaveTimeoutError: they were not written within an hour, or `left_s()` seconds.
        """
        self.finish_copy()
        self._await(lambda: not self.open.in_arena, left_s)

    def gave_up(self, number: int, left_s: Callable[[], float] = unlimited) -> bool:
        """Whether the save of this number is torn or left out what is not the base; waits for it.

        Raises:
            SaveTimeoutError: that took an hour, or longer than `left_s()` seconds.
        """
        self.finish_copy()
        self._await(lambda: number not in self.open.copies, left_s)
        return self.open.has_failed(number)

    def drain(
        self, checkpoint_id: str | None = None, left_s: Callable[[], float] = unlimited
    ) -> None:
        """Wait until all saves, or those of `checkpoint_id`, are committed or have failed.

        `left_s` returns the seconds left; it is called repeatedly, since a signal may shorten them.

        Raises:
            SaveTimeoutError: they were not written in that time, or within an hour.
        """
        self.finish_copy()
        self._await(lambda: not self.pending(checkpoint_id), left_s)

    def close(self) -> None:
        """End the threads and release the memory, after the copy in progress is complete.

        The worker keeps its mapping of an arena until it has written the snapshot in it.
        """
        self._guard.close()
        self._finisher.close()
        self._copier.close()
        self._previous = self._copying = None
        self.open.clear_copies()
        self._planner.clear()
        self._cache = EncodingCache()
        self._arenas.close()
        self._toucher.shutdown()

    def _await(self, over: Callable[[], bool], left_s: Callable[[], float] = unlimited) -> None:
        started = time.monotonic()
        self.open.collect()
        while not over():
            waited_s = time.monotonic() - started
            wait_s = min(_LOOK_S, _WAIT_S - waited_s, left_s())
            if wait_s <= 0:
                raise timeout_error(self.open.records.values(), waited_s)
            copying = [future for future, _, _ in self.open.copies.values()]
            if copying:
                wait(copying[:1], wait_s)  # `collect` handles its result
            else:
                self._wait_for_events(wait_s)
            self.open.collect()
