"""Thread of a worker that sends this rank's parts to the store, and then their records."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from bt_lightning.errors import CheckpointError, CheckpointNotFoundError, StoreError
from bt_lightning.sharding.gather_verdict import GatherVerdict
from bt_lightning.store.retry import backoff
from bt_lightning.store.transfer.file_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.save_part import PartRecord, SaveKey
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.store_claims import Claim
    from bt_lightning.store.transfer.store_parts import PartsInStore
    from bt_lightning.worker.open_parts import OpenPart, OpenParts
    from bt_lightning.worker.parts_on_node import PartsOnNode


class StoreLeader(Protocol):
    """What rank 0's worker does on its publisher's thread, which has the lease."""

    def claim(self, key: SaveKey, checkpoint_id: str, after: int) -> Claim:
        """The folder of a save."""

    def commit(self, claim: Claim, manifest: Manifest) -> None:
        """Commit it."""

    def end(self, key: SaveKey, outcome: bytes) -> None:
        """Give it up."""


class PartSender:
    """Sends the oldest part first, and retries until it is sent or its save has an outcome."""

    def __init__(
        self,
        open_parts: OpenParts,
        node: PartsOnNode,
        parts: Callable[[], PartsInStore],
        lead: StoreLeader | None,
    ) -> None:
        """`lead`: on rank 0, which claims the folder."""
        self._open = open_parts
        self._node = node
        self._parts = parts
        self._lead = lead
        self.unwanted: Callable[[SaveKey], bool] = lambda _: False
        """Whether a save is to go as soon as it is committed; on rank 0."""
        self.at_work = threading.Lock()
        """Held while files are sent."""

    def run(self) -> None:
        """The thread; ends after the file under way when the parts are closed."""
        failures = 0
        while True:
            with self._open.changed:
                self._open.changed.wait_for(
                    lambda: self._open.closed or self._open.next(self._can_send) is not None
                )
                save = self._open.next(self._can_send)
            if save is None or self._open.closed:
                return
            try:
                if self._lead is not None and self._is_superseded(save):
                    self._drop(save, self._lead)
                    continue
                with self.at_work:
                    own = save.own
                    if own is not None:
                        save.sending = True
                        try:
                            self._send(save, own)
                        finally:
                            save.sending = False
                failures = 0
            except (CheckpointNotFoundError, StoreError) as error:
                failures += 1
                with self._open.changed:
                    self._open.error = str(error)
                    self._open.changed.wait(backoff(failures, 1.0))
            except (CheckpointError, OSError) as error:  # its files are damaged, or cannot be read
                self._lose(save, str(error))

    def _can_send(self, save: OpenPart) -> bool:
        if save.own is None or not save.is_unsent():
            return False
        return bool(save.own.missing) or save.claim is not None or self._lead is not None

    def _is_superseded(self, save: OpenPart) -> bool:
        """Whether nothing is sent of a save that would go at once, and a newer one is durable."""
        key = save.part.key
        if save.claim is not None or not self.unwanted(key):
            return False
        with self._open.changed:
            newer = [one for other, one in self._open.saves.items() if other.number > key.number]
        return any(one.own is not None and not one.own.missing for one in newer)

    def _drop(self, save: OpenPart, lead: StoreLeader) -> None:
        verdict = GatherVerdict(why="a newer save took its place", cause="dropped")
        lead.end(save.part.key, verdict.to_bytes())
        with self._open.changed:
            save.verdict = save.verdict or verdict
            self._open.changed.notify_all()

    def _lose(self, save: OpenPart, why: str) -> None:
        """Say to all ranks that this one's part is lost."""
        with self._open.changed:
            if save.own is not None:
                save.own = replace(save.own, files=(), missing=why)

    def _send(self, save: OpenPart, own: PartRecord) -> None:
        key, parts = save.part.key, self._parts()
        if not own.missing:
            if save.claim is None:
                assert self._lead is not None
                assert own.head is not None
                claim = self._lead.claim(key, own.head.checkpoint_id, own.head.after)
                with self._open.changed:
                    save.claim = claim
            assert save.claim is not None

            @contextlib.contextmanager
            def source_of(entry: FileEntry) -> Iterator[DescribedSource]:
                with contextlib.ExitStack() as opened:
                    source = save.memory.get(entry.path)
                    if source is None:
                        file = self._node.file(key, entry.path)
                        source = opened.enter_context(FileSource(file, entry))
                    yield source

            parts.send(save.claim, own.files, source_of, base=self._open.base)
        parts.put_record(key.folder, own.part.rank, own.to_bytes())
        with self._open.changed:
            save.sent = True
            if save.left:  # nobody waits for its outcome
                self._open.saves.pop(key, None)
            self._open.changed.notify_all()
        if save.left:
            self._node.end(key, None, own)
