"""Tracks the saves of one fit: starts them, collects their outcomes, and notifies listeners."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import (
    CheckpointError,
    DirectoryFullError,
    PartsMissingError,
    SaveTimeoutError,
    TornSnapshotError,
)
from bt_lightning.localdir.event_log import note
from bt_lightning.manifest import Manifest
from bt_lightning.session.checkpoint_paths import unwritten_error
from bt_lightning.session.committed_artifacts import NoArtifacts
from bt_lightning.session.save_traces import SaveTraces
from bt_lightning.snapshot.base_table import BaseChangedError
from bt_lightning.snapshot.save_record import changed_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bt_lightning.save_decisions import SaveDecision
    from bt_lightning.session.committed_artifacts import Artifacts
    from bt_lightning.session.snapshot_writer import SnapshotWriter
    from bt_lightning.sharding.save_part import SavePart
    from bt_lightning.snapshot.save_record import Policy, SaveRecord
    from bt_lightning.snapshot.saver import Saver
    from bt_lightning.worker_messages import FreedSpace, Published

log = logging.getLogger(__name__)

State = TypeVar("State")

_MOST = 1000


@dataclass(frozen=True)
class SaveListeners:
    """Callbacks for the events of saves; called on the training thread."""

    committed: Callable[[Manifest], None]
    """This process (not the worker) has committed a checkpoint."""
    remove: Callable[[Manifest], None]
    """A checkpoint was committed whose removal was requested meanwhile."""
    ended: Callable[[SaveRecord], None]
    """A save is committed or has failed; called again when it is in the store."""
    room: Callable[[int, str], FreedSpace]
    """Free this number of bytes on the disk for this checkpoint id; waits for the worker."""


class Saves:
    """The saves of one fit; used on the training thread of each rank that writes.

    Where ranks write a part each, only rank 0's `collect` raises: the others record what failed.
    """

    def __init__(self, saver: Saver, root: Path, policy: Policy, listeners: SaveListeners) -> None:
        self.saver = saver
        self.taken = 0
        """Number of saves of this fit, finished or not, of a resumable state."""
        self.taken_step: int | None = None
        """Optimizer step of the newest of them, if it has not failed."""
        self._taken_number = 0
        self.newest: SaveRecord | None = None
        """The newest committed save of a resumable state."""
        self.artifacts: Artifacts = NoArtifacts()
        """Gets the committed checkpoints as well."""
        self._resumable: set[int] = set()
        self._root = root
        self.policy = policy
        self._traces = SaveTraces()
        self._listeners = listeners
        self._to_remove: set[str] = set()
        self._saved: dict[str, SaveRecord] = {}
        self._began: dict[int, float] = {}
        self._warned: set[str] = set()
        self._refused: list[DirectoryFullError] = []
        """Errors of saves on this thread that had no space on the disk; raised by `collect`."""
        self._rank = 0

    def save(
        self,
        writer: SnapshotWriter[State],
        state: State,
        checkpoint_id: str,
        part: SavePart | None = None,
    ) -> None:
        """Take a snapshot of `state`, or write it directly if there is no memory for one.

        `part`: which part of the save this rank has, if every rank has one; then every rank calls
        this, and none waits for another.

        Raises:
            DirectoryUnusableError: a direct write failed.
        """
        self._rank = part.rank if part is not None else 0
        self._to_remove.discard(checkpoint_id)
        began, started = time.time(), time.perf_counter()
        record = self.saver.save(
            checkpoint_id,
            lambda cache: writer.take(state, cache),
            lambda snapshot: writer.facts(state, snapshot),
            part,
        )
        self._began[record.number] = began
        self._traces.called(record, began)
        if record.decision != "skipped" and writer.resumable(state):
            self.taken += 1
            self.taken_step, self._taken_number = writer.step(state), record.number
            self._resumable.add(record.number)
        if record.snapshot == "direct":
            self._warn_once(
                "there is not enough host memory for a snapshot (see arena_memory): training waits"
                " while its checkpoints are written"
            )
            self._save_directly(writer, state, record, part, started)
        elif record.decision == "skipped":
            record.step = writer.step(state) or 0
            self._notify_ended(record)

    def _save_directly(
        self,
        writer: SnapshotWriter[State],
        state: State,
        record: SaveRecord,
        part: SavePart | None,
        started: float,
    ) -> None:
        over = True
        try:
            if part is not None:
                self._write_part(writer, state, record, part)
                over = False  # what comes of it is collected
            else:
                self._write(writer, state, record)
        except DirectoryFullError as error:
            record.decision = "refused"
            self._refused.append(error)
        except CheckpointError as error:
            record.decision = "failed"
            if not self._rank:
                raise
            log.warning("this rank's part of a save: %s", error)  # rank 0 raises it
        except BaseException:
            record.decision = "failed"
            raise
        finally:
            record.call_ms = 1000 * (time.perf_counter() - started)
            if over:
                self._forget_failed(record)
                self._notify_ended(record)

    def has_save_of(self, step: int, left_s: Callable[[], float]) -> bool:
        """Whether the newest save is of this step and is not given up; waits for its copy."""
        with contextlib.suppress(SaveTimeoutError):
            return self.taken_step == step and not self.saver.gave_up(self._taken_number, left_s)
        return True

    def wait_for(self, checkpoint_id: str) -> None:
        """Wait until no save of `checkpoint_id` is in progress."""
        if self.saver.pending(checkpoint_id):
            self.saver.drain(checkpoint_id)

    def remove_when_committed(self, checkpoint_id: str) -> bool:
        """Request the removal of a save in progress; False if there is none of this id."""
        if not self.saver.pending(checkpoint_id):
            return False
        self._to_remove.add(checkpoint_id)
        self.saver.remove_when_committed(checkpoint_id)
        return True

    @property
    def has_outcomes(self) -> bool:
        """Whether `collect` may have something to do."""
        return bool(self._refused) or self.saver.has_outcomes or self.artifacts.has_failures

    def collect(self) -> None:
        """Notify the listeners of every save that ended since the last call; raise the first error.

        Raises:
            DirectoryFullError: there was no space for a save, neither on the disk nor in the store.
            DirectoryUnusableError: a save could not be written to the disk.
            TornSnapshotError: the state changed while it was copied, with `snapshot="lazy"`.
            UploadFailedError: a logger did not accept a checkpoint.
        """
        failures: list[Exception] = list(self._refused)
        self._refused.clear()
        for record, outcome in self.saver.take_outcomes():
            if isinstance(outcome, bytes):
                manifest = Manifest.from_bytes(outcome, record.checkpoint_id)
                self._await_publication(manifest, record)
                if record.trouble:
                    self._warn_once(
                        f"the disk fails ({record.trouble}). Checkpoints go straight to the store"
                        " until it works again"
                    )
                if record.checkpoint_id in self._to_remove:
                    self._to_remove.discard(record.checkpoint_id)
                    self.artifacts.hand_over(record.checkpoint_id)
                    self._listeners.remove(manifest)
            elif isinstance(outcome, TornSnapshotError) and self.policy == "auto":
                record.decision = "torn"
                self.saver.lazy = False
                warnings.warn(f"{outcome}. This run does so from here on", stacklevel=2)
            elif isinstance(outcome, BaseChangedError):
                record.decision = "changed"
                warnings.warn(changed_text(record, outcome.names), stacklevel=2)
            elif outcome is not None:
                failures.append(self._with_advice(record, outcome))
                record.decision = _decision(failures[-1], self._rank)
            self._forget_failed(record)
            self._notify_ended(record)
        self.artifacts.hand_over()
        failures += self.artifacts.failures()
        for failure in failures[0 if self._rank else 1 :]:
            log.error("%s", failure)
        if failures and not self._rank:
            raise failures[0]

    def _forget_failed(self, record: SaveRecord) -> None:
        """Let the step of a save that came to nothing be saved again."""
        if record.number == self._taken_number and not record.is_kept:
            self.taken_step = None

    def published(self, events: Iterable[Published]) -> None:
        """Record that checkpoints are in the store."""
        for event in events:
            record = self._saved.pop(event.digest, None)
            if record is not None:
                record.remote_durable_s = event.remote_durable_s
                self._traces.published(record, event.seconds)
                self._listeners.ended(record)

    def _write(self, writer: SnapshotWriter[State], state: State, record: SaveRecord) -> None:
        """Commit `state` on this thread, and write the event that the worker would write."""
        record.step = writer.step(state) or 0
        self.wait_for(record.checkpoint_id)  # otherwise the older save would replace this one
        started, cpu = time.perf_counter(), time.thread_time()
        final, after = (
            self._root / record.checkpoint_id,
            self.saver.generation(record.checkpoint_id),
        )
        manifest = writer.save(
            state, final, self._root, after, lambda size: self._make_room(record, size)
        )
        record.write_s, record.cpu_s = time.perf_counter() - started, time.thread_time() - cpu
        record.local_durable_s = time.time() - self._began[record.number]
        record.step, record.bytes = manifest.step, manifest.size
        with contextlib.suppress(OSError):  # a lost event does no harm
            note(
                self._root,
                "durable",
                number=record.number,
                checkpoint=record.checkpoint_id,
                bytes=record.bytes,
                write_s=record.write_s,
                local_durable_s=record.local_durable_s,
                cpu_s=record.cpu_s,
            )
        self._await_publication(manifest, record)
        self._listeners.committed(manifest)

    def _write_part(
        self, writer: SnapshotWriter[State], state: State, record: SaveRecord, part: SavePart
    ) -> None:
        """Write this rank's part on this thread; the worker waits for the others."""
        record.step = writer.step(state) or 0
        started, cpu = time.perf_counter(), time.thread_time()
        name = (record.checkpoint_id, self.saver.generation(record.checkpoint_id))
        try:
            self.saver.await_own_parts()  # those of one rank become durable in their order
            written = writer.save_part(
                state, part, self._root, name, lambda size: self._make_room(record, size)
            )
        except BaseException as error:
            full = isinstance(error, DirectoryFullError)
            self.saver.open.miss(record.number, part, str(error), "full" if full else "failed")
            raise
        record.write_s, record.cpu_s = time.perf_counter() - started, time.thread_time() - cpu
        record.bytes = sum(entry.size for entry in written.files)
        self.saver.open.add_written(record, part, self._began[record.number])

    def _make_room(self, record: SaveRecord, size: int) -> None:
        room = self._listeners.room(size, record.checkpoint_id)
        record.evicted = len(room.evicted)
        if not room.fits:
            msg = (
                f"the checkpoint {record.checkpoint_id} was not saved: {room.reason}. What training"
                " writes by itself goes to the disk only (see arena_memory): free some space, or"
                " keep fewer checkpoints (save_top_k)"
            )
            raise DirectoryFullError(msg)

    def _await_publication(self, manifest: Manifest, record: SaveRecord) -> None:
        """Remember the record until the checkpoint is in the store."""
        self._saved[manifest.digest] = record
        if len(self._saved) > _MOST:  # without a store none is ever published
            del self._saved[next(iter(self._saved))]

    def _with_advice(self, record: SaveRecord, error: Exception) -> Exception:
        if isinstance(error, OSError) and not isinstance(error, CheckpointError):
            return unwritten_error(record.checkpoint_id, self._root, error)
        return error

    def _notify_ended(self, record: SaveRecord) -> None:
        if record.number in self._resumable:
            self._resumable.discard(record.number)
            if record.is_kept:
                self.newest = record
        self._listeners.ended(record)
        self._traces.ended(record)
        began = self._began.pop(record.number, time.time())
        if self._rank:
            return  # rank 0 writes the event
        with contextlib.suppress(OSError):  # a lost event does no harm
            note(self._root, "save", began=began, **dataclasses.asdict(record))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)


def _decision(error: Exception, rank: int) -> SaveDecision:
    """How a save failed on this rank."""
    if rank and isinstance(error, PartsMissingError):
        return "uncommitted"
    return "refused" if isinstance(error, DirectoryFullError) else "failed"
