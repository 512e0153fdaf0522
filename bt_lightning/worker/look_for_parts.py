"""Thread of a worker that looks in the store for parts of other ranks, and for outcomes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, CheckpointError, StoreTransientError
from bt_lightning.sharding.gather_verdict import GatherVerdict
from bt_lightning.sharding.save_part import PartRecord
from bt_lightning.store.retry import backoff
from bt_lightning.worker.open_parts import OpenPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.store.transfer.store_claims import Claim, Meeting
    from bt_lightning.store.transfer.store_parts import PartsInStore
    from bt_lightning.worker.open_parts import OpenParts

_LEAST_POLL_S: Final = 0.05
_MOST_POLL_S: Final = 2.0
_POLLS_IN_WAIT: Final = 20


class PartsWatch:
    """Looks at each open save, less and less often."""

    def __init__(self, open_parts: OpenParts, parts: Callable[[], PartsInStore]) -> None:
        self._open = open_parts
        self._parts = parts

    def run(self) -> None:
        """The thread; never ends."""
        known, failures = self._open, 0
        while True:
            with known.changed:
                known.changed.wait_for(lambda: known.next(OpenPart.is_open) is not None)
                each = [save for save in known.saves.values() if save.is_open()]
            shortest = min(time.monotonic() - save.since for save in each)
            pause_s = max(_LEAST_POLL_S, min(_MOST_POLL_S, shortest / _POLLS_IN_WAIT))
            try:
                for save in each:
                    self._look(save)
                failures = 0
            except (CheckpointError, OSError) as error:
                failures += 1
                pause_s = min(_MOST_POLL_S, backoff(failures, 1.0))
                with known.changed:
                    known.error = str(error)
                    if not isinstance(error, StoreTransientError):
                        known.answered()  # it will say the same again: that is no pause
            time.sleep(pause_s)

    def _look(self, save: OpenPart) -> None:
        parts, key = self._parts(), save.part.key
        claimed = save.claim  # before the look: it may be claimed meanwhile
        found = parts.look(key.folder, known=save.records)
        records = {}
        for rank, data in found.records.items():
            with contextlib.suppress(CheckpointCorruptError):  # then that rank is missing
                records[rank] = PartRecord.from_bytes(data, f"{key.folder} of rank {rank}")
        verdict = _verdict(parts, save, claimed, found)
        with self._open.changed:
            if records or found.beats - save.beats or (found.claim and save.claim is None):
                save.alive_at = time.monotonic()
            save.records.update(records)
            save.beats = found.beats
            save.claim = save.claim or found.claim
            whole = len(save.records) == save.part.world_size
            if whole and save.whole_at is None:
                save.whole_at = time.monotonic()
            save.verdict = save.verdict or verdict
            self._open.answered()
            self._open.changed.notify_all()


def _verdict(
    parts: PartsInStore, save: OpenPart, claimed: Claim | None, found: Meeting
) -> GatherVerdict | None:
    """What came of a save, if its claim is gone."""
    if found.claim is not None:
        return None
    if found.outcome is not None:
        return GatherVerdict.from_bytes(found.outcome, save.part.key.folder)
    if claimed is None:
        return None
    manifest = parts.manifest(claimed)
    own = save.own.files if save.own is not None else ()
    if manifest is not None and set(own) <= set(manifest.files):
        return GatherVerdict(manifest=manifest)
    return GatherVerdict(why="it was given up by rank 0's worker", cause="late")
