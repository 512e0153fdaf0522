"""Saves whose parts meet in the store, and that have no outcome yet, as one worker knows them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.sharding.gather_verdict import GatherVerdict
    from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.publish import Base
    from bt_lightning.store.transfer.store_claims import Claim
    from bt_lightning.worker.sending_beat import SendingBeat

_GAP_S: Final = 6.0
"""Seconds between two answers, after which the store counts as having been away."""


@dataclass(eq=False)
class OpenPart:
    """This rank's part of one save, and what is known of those of the others."""

    part: SavePart
    own: PartRecord | None = None
    """The record of this rank, once its part is durable or lost."""
    memory: Mapping[str, DescribedSource] = field(default_factory=dict)
    """Files of this rank's part that are on no disk."""
    sent: bool = False
    """Whether this rank's record is in the store."""
    claim: Claim | None = None
    records: dict[int, PartRecord] = field(default_factory=dict)
    """Of the ranks whose files are all in the store, as far as they are read."""
    ranks: frozenset[int] = frozenset()
    """Those ranks."""
    verdict: GatherVerdict | None = None
    left: bool = False
    """Nobody waits for its outcome here."""
    beats: frozenset[str] = frozenset()
    sending: bool = False
    """Whether this rank's files are being sent, or rank 0's worker claims their folder."""
    heart: SendingBeat | None = None
    since: float = field(default_factory=time.monotonic)
    alive_at: float = field(default_factory=time.monotonic)
    """When something came of any rank, of this save or of one before it."""
    whole_at: float | None = None
    """When the store had the parts of all ranks."""

    def is_unsent(self) -> bool:
        """Whether this rank's record is there, and the store does not have it."""
        return self.own is not None and not self.sent and self.verdict is None

    def is_open(self) -> bool:
        """Whether its outcome is waited for."""
        return self.verdict is None and not self.left


class OpenParts:
    """All of them, by save, the oldest first. Each attribute is guarded by `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        """Notified of each change."""
        self.saves: dict[SaveKey, OpenPart] = {}
        self.base: Base | None = None
        """The newest checkpoint: what it has need not be sent again."""
        self.error = "rank 0's worker has not said where to"
        """The last error of the store."""
        self.failing = False
        """Whether the last look at the store failed."""
        self.closed = False
        """Whether the threads are to end."""
        self.answered_at = self.answers_since = time.monotonic()
        """When the store answered last, and since when it has done so without a gap."""

    def answered(self) -> None:
        """The store answered; the caller holds `changed`."""
        now = time.monotonic()
        if now - self.answered_at > _GAP_S:
            self.answers_since = now
        self.answered_at = now

    def alive(self, save: OpenPart) -> None:
        """Something came of a save. Each rank sends later ones behind it: they are not late yet.

        The caller holds `changed`.
        """
        now = time.monotonic()
        for one in self.saves.values():
            if one is save or one.part.key.number > save.part.key.number:
                one.alive_at = now

    def silent_s(self, save: OpenPart) -> float:
        """Seconds in which nothing came of any rank, though the store answered."""
        return self.answered_at - max(save.alive_at, self.answers_since)

    def next(self, can: Callable[[OpenPart], bool]) -> OpenPart | None:
        """The oldest one of which this holds; the caller holds `changed`."""
        return next((save for save in self.saves.values() if can(save)), None)
