"""Where the parts of all ranks come together, as the worker sees it: a directory, or a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bt_lightning.sharding.gather_verdict import GatherVerdict
    from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart


class GatherPlace(Protocol):
    """Where the parts of all ranks come together.

    `begin` and `put` are called by the commit thread, the others by the gather thread. An `OSError`
    of the others is tried again until the deadline.
    """

    streams: bool
    """Whether a checkpoint is committed in the store, and not on the disk."""

    def begin(self, part: SavePart) -> Path:
        """Join a gather; return the folder on the disk that this rank writes its files to."""

    def put(self, record: PartRecord) -> None:
        """Make this rank's record durable, which its files are; one that is there stays."""

    def records(self, key: SaveKey) -> Mapping[int, PartRecord]:
        """The records that are there, by rank."""

    def hosts(self, key: SaveKey) -> Mapping[int, str]:
        """The hosts of the ranks that have joined, as far as they are known."""

    def outcome(self, key: SaveKey) -> GatherVerdict | None:
        """The verdict, once it is in effect; also after `end`, for the last few saves."""

    def commit(self, key: SaveKey, records: Mapping[int, PartRecord]) -> GatherVerdict:
        """Commit a whole gather unless it has a verdict; return the one that counts.

        Raises:
            CheckpointError: it cannot be committed; a corrupt one may be whole at the next try.
        """

    def give_up(self, key: SaveKey, verdict: GatherVerdict) -> GatherVerdict:
        """Decide that nothing is committed unless there is a verdict; return what counts."""

    def leader_gone(self, key: SaveKey) -> bool:
        """Whether rank 0's worker is known to be dead."""

    def writing(self, key: SaveKey) -> bool:
        """Whether a living worker is known to write a part of it; a store knows none.

        Raises:
            OSError: the disk refused.
        """

    def overdue(self, key: SaveKey, waited_s: float, limit_s: float) -> bool:
        """Whether the missing parts had enough time.

        `waited_s`: seconds since this rank's part is durable, expected to be at most `limit_s`.
        """

    def end(self, key: SaveKey) -> None:
        """Leave a gather."""

    def close(self) -> None:
        """All gathers are left, and no more come."""
