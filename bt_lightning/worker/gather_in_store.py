"""Gathers parts of ranks whose checkpoint directories are not one: they meet in the store.

A part is durable in its node's own directory first, which is what the commit thread waits for. Two
threads do the rest, and retry it until it is done or the save has an outcome: one sends this rank's
parts, the other looks at what there is in the store. What other threads of the worker ask is
answered from the last look: none of them waits for the network.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointNotFoundError, StoreTransientError
from bt_lightning.sharding.gather_verdict import GatherVerdict, manifest_of
from bt_lightning.worker.look_for_parts import PartsWatch
from bt_lightning.worker.open_parts import OpenPart, OpenParts
from bt_lightning.worker.parts_on_node import PartsOnNode
from bt_lightning.worker.send_parts import PartSender

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.store_parts import PartsInStore
    from bt_lightning.worker.send_parts import StoreLeader

_CLOSE_S: Final = 2.0
"""Longest wait for a thread that the store holds up."""
_UNANSWERED_S: Final = 10.0
"""Seconds for which a part in memory waits for a store that does not answer."""
_SILENT_S: Final = 30.0
"""Seconds for which a whole gather waits for rank 0's worker, and a part in memory for anything."""


class GatherInStore:
    """Implements `worker.gather_place.GatherPlace`; one for a worker."""

    streams = True

    def __init__(
        self,
        root: Path,
        rank: int,
        parts: Callable[[], PartsInStore],
        lead: StoreLeader | None,
    ) -> None:
        """`parts`: where they meet in the store; `lead`: on rank 0."""
        self._rank = rank
        self._parts = parts
        self._lead = lead
        self._node = PartsOnNode(root, rank)
        self._open = OpenParts()
        self._changed = self._open.changed
        self._sender = PartSender(self._open, self._node, parts, lead)
        self._watch = PartsWatch(self._open, self._node, parts, leads=lead is not None)
        self._threads: list[threading.Thread] = []

    def drop_if(self, unwanted: Callable[[SaveKey], bool]) -> None:
        """Tell which saves are to go as soon as they are committed: newer ones take their place."""
        self._sender.unwanted = unwanted

    # the commit thread

    def begin(self, part: SavePart) -> Path:
        """Join a gather; return the folder on the disk that this rank writes its files to."""
        folder, own = self._node.begin(part)
        with self._changed:
            self._open.saves.setdefault(part.key, OpenPart(part, own=own))
            self._changed.notify_all()
            if not self._threads:
                for run in (self._sender.run, self._watch.run):
                    thread = threading.Thread(target=run, daemon=True, name="bt_lightning parts")
                    self._threads.append(thread)
                    thread.start()
        return folder

    def put(self, record: PartRecord) -> None:
        """Make this rank's record durable on the disk; it goes to the store when its files have.

        Of a part that is missing the others are told also if the disk is full.

        Raises:
            OSError: the disk refused.
        """
        try:
            self._node.put(record)
        except OSError:
            if not record.missing:
                raise
        self._send_soon(record, {})

    def stream(self, record: PartRecord, memory: Mapping[str, DescribedSource]) -> None:
        """Send a part that the disk does not take; returns when it is in the store.

        Raises:
            StoreTransientError: the store does not take it, or the save was given up.
        """
        save = self._send_soon(record, memory)
        with self._changed:
            while not save.sent and save.verdict is None and self._may_be_sent(save):
                self._changed.wait(1.0)
        with self._sender.at_work, self._changed:  # the memory is used no more
            save.memory = {}
            if save.sent:
                return
            save.own = None
        msg = f"the part of rank {self._rank} could not be sent to the store: {self._open.error}"
        raise StoreTransientError(msg)

    def _may_be_sent(self, save: OpenPart) -> bool:
        now = time.monotonic()
        answers = now - max(self._open.answered_at, save.since) < _UNANSWERED_S
        return (answers and now - save.alive_at < _SILENT_S) or self._sender.at_work.locked()

    def _send_soon(self, record: PartRecord, memory: Mapping[str, DescribedSource]) -> OpenPart:
        with self._changed:
            save = self._open.saves[record.part.key]
            if save.own is None:
                save.own, save.memory = record, memory
            self._changed.notify_all()
            return save

    # any thread; nothing here asks the store

    def records(self, key: SaveKey) -> Mapping[int, PartRecord]:
        """The records that are there, and this rank's own."""
        with self._changed:
            save = self._open.saves.get(key)
            if save is None:
                return {}
            own = {self._rank: save.own} if save.own is not None else {}
            return {**save.records, **own}

    def hosts(self, key: SaveKey) -> Mapping[int, str]:
        """The hosts of the ranks whose records are there.

        Raises:
            StoreTransientError: it is not known, as the store fails.
        """
        with self._changed:
            if self._open.failing:
                raise StoreTransientError(self._open.error)
        return {rank: record.host for rank, record in self.records(key).items()}

    def outcome(self, key: SaveKey) -> GatherVerdict | None:
        """The verdict, once it is in effect; also after `end`, for the last few saves."""
        with self._changed:
            save = self._open.saves.get(key)
            if save is not None:
                return save.verdict
        return self._node.outcome(key)

    def leader_gone(self, key: SaveKey) -> bool:
        """Whether all has been there for long, and rank 0's worker has not committed it."""
        with self._changed:
            save = self._open.saves.get(key)
            whole = None if save is None else save.whole_at
            return whole is not None and time.monotonic() - whole > _SILENT_S

    def writing(self, key: SaveKey) -> bool:  # noqa: ARG002
        """Always False: nobody knows which workers of other nodes live."""
        return False

    def overdue(self, key: SaveKey, waited_s: float, limit_s: float) -> bool:  # noqa: ARG002
        """Whether nothing came of any rank for so long, while the store answered."""
        with self._changed:
            save = self._open.saves.get(key)
            return save is not None and self._open.silent_s(save) > limit_s

    # the gather thread

    def commit(self, key: SaveKey, records: Mapping[int, PartRecord]) -> GatherVerdict:
        """Commit a whole gather unless it has a verdict; return the one that counts.

        Raises:
            StoreError: the store refused, or this rank's own part is still on its way.
        """
        with self._changed:
            save = self._open.saves[key]
            verdict, claim, sent = save.verdict, save.claim, save.sent
        if verdict is not None:
            return verdict
        if claim is None or not sent:
            msg = f"the part of rank {self._rank} is on its way to the store"
            raise StoreTransientError(msg)
        manifest = manifest_of(records, claim.number)
        commit = self._parts().commit if self._lead is None else self._lead.commit
        try:
            commit(claim, manifest)
        except CheckpointNotFoundError as error:  # the next look finds what came of it
            raise StoreTransientError(str(error)) from error
        return self._decide(save, GatherVerdict(manifest=manifest))

    def give_up(self, key: SaveKey, verdict: GatherVerdict) -> GatherVerdict:
        """Decide that nothing is committed unless there is a verdict; return what counts.

        Rank 0's worker decides for all; another one for itself alone.

        Raises:
            StoreError: the store refused.
        """
        with self._changed:
            save = self._open.saves[key]
            known, claim = save.verdict, save.claim
        if known is not None:
            return known
        if self._lead is not None:
            self._lead.end(key, verdict.to_bytes())
            manifest = None if claim is None else self._parts().manifest(claim)
            if manifest is not None:  # another worker committed it
                verdict = GatherVerdict(manifest=manifest)
        return self._decide(save, verdict)

    def _decide(self, save: OpenPart, verdict: GatherVerdict) -> GatherVerdict:
        with self._changed:
            save.verdict = save.verdict or verdict
            self._changed.notify_all()
            return save.verdict

    def end(self, key: SaveKey) -> None:
        """Leave a gather: keep the files of a committed one, delete those of another."""
        with self._changed:
            save = self._open.saves.get(key)
            if save is None:
                return
            save.left = True
            if save.verdict is None and not save.sent and save.own is not None:
                return  # its record, which says why it is missing, is still to be sent
            del self._open.saves[key]
            verdict, claim = save.verdict, save.claim
            if verdict is not None and verdict.manifest is not None and claim is not None:
                self._open.base = self._parts().base(claim, verdict.manifest)
        self._node.end(key, verdict, save.own)

    def close(self) -> None:
        """No more parts come: end the threads, after the file under way.

        Records that say why a part is missing are sent first, if the store takes them at once.
        """
        unsent = OpenPart.is_unsent
        with self._changed:
            self._changed.wait_for(lambda: self._open.next(unsent) is None, _CLOSE_S)
            self._open.closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_S)
