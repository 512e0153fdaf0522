"""The saves that have no outcome yet, and the outcomes that nobody has collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.part_messages import AwaitParts, MissPart, PartDurable
from bt_lightning.snapshot.save_record import torn_error
from bt_lightning.worker_messages import CommitFailed, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from bt_lightning.sharding.save_part import MissingCause, SavePart
    from bt_lightning.snapshot.copy_and_torn_check import Capture
    from bt_lightning.snapshot.save_record import SaveRecord
    from bt_lightning.worker.worker_handle import Worker
    from bt_lightning.worker_messages import Committed

    SaveOutcome = bytes | Exception | None
    """The manifest's bytes, the error, or None for a save that a newer one replaced."""


class OpenSaves:
    """The saves of one `Saver`; used on the training thread."""

    def __init__(self, worker: Worker, release: Callable[[int], None]) -> None:
        """`release(number)` frees the arena of a save."""
        self._worker = worker
        self._release = release
        self.records: dict[int, SaveRecord] = {}
        """By number; without those whose copy has failed."""
        self.copies: dict[int, tuple[Future[None], Capture, SaveRecord]] = {}
        """Those whose copy may be in progress."""
        self.in_arena: set[int] = set()
        """Numbers of those whose arena is not free."""
        self._ended: list[tuple[SaveRecord, SaveOutcome]] = []

    def add(self, record: SaveRecord, future: Future[None], capture: Capture) -> None:
        """Add a save that is being copied; `future` is done when the worker has it."""
        self.records[record.number] = record
        self.in_arena.add(record.number)
        self.copies[record.number] = (future, capture, record)

    def add_written(self, record: SaveRecord, part: SavePart, began: float) -> None:
        """Add a save whose part this process has written; `began` as in `CommitImage`."""
        self.records[record.number] = record
        self._worker.commit(AwaitParts(number=record.number, part=part, began=began))

    def miss(
        self, number: int, part: SavePart | None, why: str, cause: MissingCause = "failed"
    ) -> None:
        """Let all ranks know that this one has no part of a save; a whole save has no parts."""
        if part is not None:
            self._worker.commit(MissPart(number=number, part=part, why=why, cause=cause))

    def handle(self, event: Committed | CommitFailed | Withdrawn | PartDurable) -> None:
        """Record what the worker says of a save."""
        self._free(event.number)
        if isinstance(event, PartDurable):
            return
        record = self.records.pop(event.number)
        if isinstance(event, Withdrawn):
            record.decision = "replaced"
            self._ended.append((record, None))
            return
        record.update_from(event)
        outcome = event.error if isinstance(event, CommitFailed) else event.manifest
        self._ended.append((record, outcome))

    def collect(self) -> None:
        """Collect the copies that have ended; record those that failed or were torn."""
        for number, (future, capture, record) in list(self.copies.items()):
            if not future.done():
                continue
            del self.copies[number]
            raised = future.exception()
            if raised is None and not capture.torn:
                continue
            self.records.pop(number, None)
            self._free(number)
            error = raised if isinstance(raised, Exception) else torn_error(record)
            self._ended.append((record, error))

    @property
    def has_outcomes(self) -> bool:
        """Whether `take_outcomes` may return something."""
        return bool(self.copies or self._ended)

    def take_outcomes(self) -> list[tuple[SaveRecord, SaveOutcome]]:
        """The saves that ended since the last call, each with its outcome."""
        self.collect()
        ended, self._ended = self._ended, []
        return ended

    def has_failed(self, number: int) -> bool:
        """Whether a save that nobody has collected has failed."""
        return any(r.number == number and isinstance(o, Exception) for r, o in self._ended)

    def of_id(self, checkpoint_id: str | None) -> list[SaveRecord]:
        """The open saves of this id, or all."""
        every = self.records.values()
        return [one for one in every if checkpoint_id in {None, one.checkpoint_id}]

    def clear_copies(self) -> None:
        """Forget the copies, which are complete."""
        self.copies.clear()

    def _free(self, number: int) -> None:
        self.in_arena.discard(number)
        self._release(number)
