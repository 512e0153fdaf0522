"""Which committed checkpoints, and which copies of them, may go now. Pure: invariant 4's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from bt_lightning.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCheckpoint:
    """A committed checkpoint as one tier (the disk, or the store) holds it."""

    place: str
    """Path relative to the tier's root."""
    checkpoint_id: str
    digest: str
    order: tuple[int, int, str]
    resumable: bool = True
    """Whether training can go on from it; weights alone do not stand in for such a one."""
    interim: bool = False
    """Whether no `ModelCheckpoint` asked for it: it is kept until a newer one can be resumed."""

    @classmethod
    def of(cls, place: str, manifest: Manifest) -> TierCheckpoint:
        """The checkpoint of a manifest."""
        return cls(
            place=place,
            checkpoint_id=manifest.checkpoint_id,
            digest=manifest.digest,
            order=manifest.order,
            resumable=manifest.resumable,
            interim=manifest.interim,
        )


def removable(
    committed: Iterable[TierCheckpoint], requested: Collection[str], pinned: Collection[str]
) -> list[TierCheckpoint]:
    """The checkpoints of one tier that may be deleted from that tier now, oldest first.

    A checkpoint may go when its removal was requested (`requested`: digests), when a newer one of
    the same id stands beside it, or when it is an interim one and superseded; but never one in
    `pinned` (digests), and only while the tier holds a newer one that stays, and that can be
    resumed from if this one can.
    """
    entries = list(committed)
    newest_of_id = {
        entry.checkpoint_id: entry.order for entry in sorted(entries, key=lambda entry: entry.order)
    }
    newest = _newest(entries)
    unwanted = [
        entry
        for entry in entries
        if entry.digest not in pinned
        and (
            entry.digest in requested
            or _is_superseded(entry, newest)
            or entry.order < newest_of_id[entry.checkpoint_id]
        )
    ]
    gone = {entry.place for entry in unwanted}
    kept = [entry for entry in entries if entry.place not in gone]
    may_go = [
        entry
        for entry in unwanted
        if any(k.order > entry.order and k.resumable >= entry.resumable for k in kept)
    ]
    return sorted(may_go, key=lambda entry: entry.order)


def evictable(
    local: Iterable[TierCheckpoint], stored: Collection[str], kept: Collection[str]
) -> list[TierCheckpoint]:
    """The checkpoints whose copy on the disk may go to make room, in that order: oldest first.

    Only what the store holds (`stored`: digests), so that the checkpoint itself stays; never what
    is in `kept` (digests): resumed from, or protected. So the newest copy goes last.
    """
    spare = [entry for entry in local if entry.digest in stored and entry.digest not in kept]
    return sorted(spare, key=lambda entry: entry.order)


def superseded(committed: Iterable[TierCheckpoint]) -> frozenset[str]:
    """Digests of the interim checkpoints with a newer one beside them that can be resumed from."""
    entries = list(committed)
    newest = _newest(entries)
    return frozenset(entry.digest for entry in entries if _is_superseded(entry, newest))


def _newest(entries: list[TierCheckpoint]) -> tuple[int, int, str] | None:
    return max((entry.order for entry in entries if entry.resumable), default=None)


def _is_superseded(entry: TierCheckpoint, newest: tuple[int, int, str] | None) -> bool:
    return entry.interim and newest is not None and entry.order < newest
