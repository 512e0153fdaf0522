"""The saves of one fit: what is asked of the saver, and what is told of each save."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bt_lightning.errors import CheckpointError, DirectoryFullError, TornSnapshotError
from bt_lightning.localdir.event_log import note
from bt_lightning.manifest import Manifest
from bt_lightning.session.checkpoint_paths import unwritten_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bt_lightning.session.checkpoint_writer import CheckpointWriter
    from bt_lightning.snapshot.save_record import Policy, SaveRecord
    from bt_lightning.snapshot.saver import Saver
    from bt_lightning.worker_messages import Published, Room

log = logging.getLogger(__name__)


_MOST = 1000


class Artifacts(Protocol):
    """Others who are to have checkpoints once they are committed; asked on the training thread."""

    @property
    def stirred(self) -> bool:
        """Whether `failures` has any."""

    def settle(self, checkpoint_id: str | None = None) -> None:
        """Hand over what is under way no more: of this id, or all."""

    def failures(self) -> list[Exception]:
        """What they refused since the last call."""


class NoArtifacts:
    """Nobody is."""

    stirred = False

    def settle(self, checkpoint_id: str | None = None) -> None:
        """Nothing."""

    def failures(self) -> list[Exception]:
        """None."""
        return []


@dataclass(frozen=True)
class SaveListeners:
    """What is told of saves; called on the training thread."""

    committed: Callable[[Manifest], None]
    """This process has committed it; what the worker commits, the worker knows."""
    unwanted: Callable[[Manifest], None]
    """It is committed, and was asked to go meanwhile."""
    ended: Callable[[SaveRecord], None]
    room: Callable[[int, str], Room]
    """So many bytes are needed for that id: what could be done. Waits."""


class Saves:
    """Called on the training thread of the rank that writes."""

    def __init__(self, saver: Saver, root: Path, policy: Policy, told: SaveListeners) -> None:
        self.saver = saver
        self.taken = 0
        """How many saves of this fit were begun of a state that can be resumed from."""
        self.newest: SaveRecord | None = None
        """The last of them that is committed."""
        self.artifacts: Artifacts = NoArtifacts()
        """Who is to have them as well, as soon as they are committed."""
        self._resumable: set[int] = set()
        self._root = root
        self.policy = policy
        self._tell = told
        self._unwanted: set[str] = set()
        self._saved: dict[str, SaveRecord] = {}
        self._began: dict[int, float] = {}
        self._warned: set[str] = set()
        self._refused: list[DirectoryFullError] = []
        """Saves of this thread that there was no room for; raised by `collect`."""

    def save(
        self, writer: CheckpointWriter, checkpoint: dict[str, Any], checkpoint_id: str
    ) -> None:
        """Take a snapshot of `checkpoint`, or write it where there is no memory for one.

        Raises:
            DirectoryUnusableError: the disk refused what was written here.
        """
        self._unwanted.discard(checkpoint_id)
        began, started = time.time(), time.perf_counter()
        record = self.saver.save(
            checkpoint_id,
            lambda memory: writer.take(checkpoint, memory),
            lambda snapshot: writer.facts(checkpoint, snapshot),
        )
        self._began[record.number] = began
        if record.decision != "skipped" and "optimizer_states" in checkpoint:
            self.taken += 1
            self._resumable.add(record.number)
        if record.snapshot == "direct":
            self._once(
                "there is not enough host memory for a snapshot (see arena_memory): training waits"
                " while its checkpoints are written"
            )
            try:
                self._write(writer, checkpoint, record)
            except DirectoryFullError as error:
                record.decision = "refused"
                self._refused.append(error)
            except BaseException:
                record.decision = "failed"
                raise
            finally:
                record.call_ms = 1000 * (time.perf_counter() - started)
                self._told(record)
        elif record.decision == "skipped":
            record.step = int(checkpoint.get("global_step", 0))
            self._told(record)

    def settle(self, checkpoint_id: str) -> None:
        """Wait until no save of `checkpoint_id` is under way."""
        if self.saver.pending(checkpoint_id):
            self.saver.drain(checkpoint_id)

    def unwanted(self, checkpoint_id: str) -> bool:
        """Ask for the removal of a save that is under way; False if none of that id is."""
        if not self.saver.pending(checkpoint_id):
            return False
        self._unwanted.add(checkpoint_id)
        self.saver.unwanted(checkpoint_id)
        return True

    @property
    def stirred(self) -> bool:
        """Whether `collect` may come to something."""
        return bool(self._refused) or self.saver.has_outcomes or self.artifacts.stirred

    def collect(self) -> None:
        """Tell of every save that ended since the last call; raise the first failure.

        Raises:
            DirectoryFullError: there was no room for it, neither on the disk nor in the store.
            DirectoryUnusableError: the disk refused.
            TornSnapshotError: the state changed while it was copied, with `snapshot="lazy"`.
            UploadFailedError: a logger did not take a checkpoint.
        """
        failures: list[Exception] = list(self._refused)
        self._refused.clear()
        for record, outcome in self.saver.take_outcomes():
            if isinstance(outcome, bytes):
                manifest = Manifest.from_bytes(outcome, record.checkpoint_id)
                self._expect(manifest, record)
                if record.trouble:
                    self._once(
                        f"the disk fails ({record.trouble}). Checkpoints go straight to the store"
                        " until it works again"
                    )
                if record.checkpoint_id in self._unwanted:
                    self._unwanted.discard(record.checkpoint_id)
                    self.artifacts.settle(record.checkpoint_id)
                    self._tell.unwanted(manifest)
            elif isinstance(outcome, TornSnapshotError) and self.policy == "auto":
                record.decision = "torn"
                self.saver.lazy = False
                warnings.warn(f"{outcome}. This run does so from here on", stacklevel=2)
            elif outcome is not None:
                failures.append(self._explained(record, outcome))
                full = isinstance(failures[-1], DirectoryFullError)
                record.decision = "refused" if full else "failed"
            self._told(record)
        self.artifacts.settle()
        failures += self.artifacts.failures()
        for failure in failures[1:]:
            log.error("%s", failure)
        if failures:
            raise failures[0]

    def published(self, events: Iterable[Published]) -> None:
        """Checkpoints reached the store."""
        for event in events:
            record = self._saved.pop(event.digest, None)
            if record is not None:
                record.remote_durable_s = event.remote_durable_s
                self._tell.ended(record)

    def _write(
        self, writer: CheckpointWriter, checkpoint: dict[str, Any], record: SaveRecord
    ) -> None:
        """Commit `checkpoint` on this thread, and note of it what the worker notes of its own."""
        record.step = int(checkpoint.get("global_step", 0))
        self.settle(record.checkpoint_id)  # or an older state would take the place of this one
        started, cpu = time.perf_counter(), time.thread_time()
        final, after = (
            self._root / record.checkpoint_id,
            self.saver.generation(record.checkpoint_id),
        )
        manifest = writer.save(
            checkpoint, final, self._root, after, lambda size: self._make_room(record, size)
        )
        record.write_s, record.cpu_s = time.perf_counter() - started, time.thread_time() - cpu
        record.local_durable_s = time.time() - self._began[record.number]
        record.step, record.bytes = manifest.step, manifest.size
        with contextlib.suppress(OSError):  # an event is no checkpoint
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
        self._expect(manifest, record)
        self._tell.committed(manifest)

    def _make_room(self, record: SaveRecord, size: int) -> None:
        room = self._tell.room(size, record.checkpoint_id)
        record.evicted = len(room.evicted)
        if not room.fits:
            msg = (
                f"the checkpoint {record.checkpoint_id} was not saved: {room.says}. What training"
                " writes by itself goes to the disk only (see arena_memory): free some space, or"
                " keep fewer checkpoints (save_top_k)"
            )
            raise DirectoryFullError(msg)

    def _expect(self, manifest: Manifest, record: SaveRecord) -> None:
        """Wait for the news that the store has it."""
        self._saved[manifest.digest] = record
        if len(self._saved) > _MOST:  # without a store none is ever published
            del self._saved[next(iter(self._saved))]

    def _explained(self, record: SaveRecord, error: Exception) -> Exception:
        if isinstance(error, OSError) and not isinstance(error, CheckpointError):
            return unwritten_error(record.checkpoint_id, self._root, error)
        return error

    def _told(self, record: SaveRecord) -> None:
        if record.number in self._resumable:
            self._resumable.discard(record.number)
            if record.is_kept:
                self.newest = record
        self._tell.ended(record)
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(
                self._root,
                "save",
                began=self._began.pop(record.number, time.time()),
                **dataclasses.asdict(record),
            )

    def _once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)
