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
from bt_lightning.worker.sending_beat import SendingBeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.store.transfer.store_claims import Claim, Meeting
    from bt_lightning.store.transfer.store_parts import PartsInStore
    from bt_lightning.worker.open_parts import OpenParts
    from bt_lightning.worker.parts_on_node import PartsOnNode

_LEAST_POLL_S: Final = 0.05
_MOST_POLL_S: Final = 2.0
_MOST_POLL_OF_OTHERS_S: Final = 4.0
_POLL_OF_A_RANK_S: Final = 0.005
_UNREAD_OF_A_RANK_S: Final = 0.015
_MOST_UNREAD_S: Final = 15.0
"""Seconds, for each rank and at most, for which another rank's worker than rank 0's looks only at
the names of records. Of a thousand workers each would read a thousand records otherwise."""
_POLLS_IN_WAIT: Final = 20
_KEPT_S: Final = 60.0
"""Seconds between two looks at what this node keeps, while nothing is saved."""


class PartsWatch:
    """Looks at each open save, less and less often; while none is, at what this node keeps."""

    def __init__(
        self,
        open_parts: OpenParts,
        node: PartsOnNode,
        parts: Callable[[], PartsInStore],
        *,
        leads: bool,
    ) -> None:
        """`leads`: in rank 0's worker."""
        self._leads = leads
        self._open = open_parts
        self._node = node
        self._parts = parts

    def run(self) -> None:
        """The thread; ends when the parts are closed."""
        known, failures = self._open, 0
        while True:
            with known.changed:
                known.changed.wait_for(
                    lambda: known.closed or known.next(OpenPart.is_open) is not None, _KEPT_S
                )
                if known.closed:
                    return
                each = [save for save in known.saves.values() if save.is_open()]
            if not each:
                self._look_at_kept()
                continue
            shortest = min(time.monotonic() - save.since for save in each)
            pause_s = max(_LEAST_POLL_S, min(self._most_poll_s(each), shortest / _POLLS_IN_WAIT))
            try:
                for save in each:
                    self._look(save)
                failures, known.failing = 0, False
            except (CheckpointError, OSError) as error:
                failures += 1
                pause_s = min(_MOST_POLL_S, backoff(failures, 1.0))
                with known.changed:
                    known.error, known.failing = str(error), True
                    if not isinstance(error, StoreTransientError):
                        known.answered()  # it will say the same again: that is no pause
            with known.changed:
                known.changed.wait_for(lambda: known.closed, pause_s)

    def _most_poll_s(self, saves: list[OpenPart]) -> float:
        """All workers list one folder: the more they are, the less often."""
        ranks = max(save.part.world_size for save in saves)
        wanted = 0.0 if self._leads else min(_MOST_POLL_OF_OTHERS_S, ranks * _POLL_OF_A_RANK_S)
        return max(_MOST_POLL_S, wanted)

    def _reads(self, save: OpenPart) -> bool:
        """Whether to read records: this worker may have to commit, or to say who is missing."""
        unread_s = min(_MOST_UNREAD_S, save.part.world_size * _UNREAD_OF_A_RANK_S)
        with self._open.changed:
            return self._leads or self._open.silent_s(save) > unread_s

    def _look_at_kept(self) -> None:
        """Delete what this node keeps of checkpoints that are gone from the store."""
        with contextlib.suppress(CheckpointError, OSError):  # the next look does
            self._node.drop_gone(self._parts().has)

    def _look(self, save: OpenPart) -> None:
        parts, key = self._parts(), save.part.key
        claimed = save.claim  # before the look: it may be claimed meanwhile
        if save.sending:
            save.heart = save.heart or SendingBeat(parts, key.folder, save.part.rank)
            save.heart.sent(0)
        world = range(save.part.world_size)
        found = parts.look(key.folder, known=save.records if self._reads(save) else world)
        records = {}
        for rank, data in found.records.items():
            with contextlib.suppress(CheckpointCorruptError):  # then that rank is missing
                records[rank] = PartRecord.from_bytes(data, f"{key.folder} of rank {rank}")
        verdict = _verdict(parts, save, claimed, found)
        with self._open.changed:
            new = found.ranks - save.ranks or found.beats - save.beats
            if new or save.sending or (found.claim and save.claim is None):
                self._open.alive(save)
            save.records.update(records)
            save.ranks |= found.ranks
            save.beats = found.beats
            save.claim = save.claim or found.claim
            whole = len(save.ranks) == save.part.world_size
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
    if claimed is None or parts.find_claim(claimed.save) == claimed:  # a listing may be late
        return None
    manifest = parts.manifest(claimed)
    own = save.own.files if save.own is not None else ()
    if manifest is not None and set(own) <= set(manifest.files):
        return GatherVerdict(manifest=manifest)
    return GatherVerdict(why="it was given up by rank 0's worker", cause="late")
