"""Deletes copies on the disk of what the store has; on the publisher's thread."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.localdir.disk_space import DiskSpace, measure, usage
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.newest_in_store import note_newest_in_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks


@dataclass(frozen=True)
class Eviction:
    """How much room is to be made, for which checkpoint, and what went for it so far."""

    root: Path
    budget: int | None
    size: int
    """Bytes that are to be free."""
    checkpoint_id: str
    """Id of the checkpoint that needs the room."""
    evicted: list[str]
    """Ids of the copies that were deleted, in order; added to as they are."""
    more: bool
    """Delete one copy at least, though there seems to be room."""
    send: Callable[[], bool] | None = None
    """Publishes one checkpoint that waits for the store, if any does; None: nothing is sent."""

    def short(self, disk: DiskSpace) -> int:
        """Bytes that are missing; 0 if there is room."""
        return max(0, self.size - disk.room)

    @property
    def over(self) -> bool:
        """Whether enough was done."""
        enough = not self.short(measure(self.root, self.budget))
        return enough and (bool(self.evicted) or not self.more)


def evict_copies(tasks: SmallDiskTasks, plan: Eviction, refusal: str | None) -> str:
    """Delete copies of what the store has, until there is room.

    The rule: a copy goes only if the store, asked just before, holds that very checkpoint with
    every file in its length, and this process has the lease then; if nobody reads it; and if the
    retention policy does not keep it (what the run resumed from, what is protected). The oldest
    goes first, the newest last, and none if all of them together would not be enough. What waits
    for the store is sent first if the plan says so. `refusal` is why the store need not be asked.

    Returns why there is no more room, for people.

    Raises:
        StoreError: the store did not say that it has it: what was not deleted by then stays.
    """
    if refusal is not None:
        return f"the store does not answer: {refusal}"
    while True:
        candidates = tasks.evictable()
        if _enough(plan, candidates):
            _evict_all(tasks, plan, candidates)
        if plan.over:
            return ""
        if not _sent_one(tasks, plan, candidates):
            return _why(tasks, candidates)


def _evict_all(
    tasks: SmallDiskTasks, plan: Eviction, candidates: Sequence[LocalCheckpoint]
) -> None:
    for found in candidates:
        if plan.over:
            return
        if tasks.is_stored(found.manifest):
            _evict(tasks, plan, found)


def _sent_one(tasks: SmallDiskTasks, plan: Eviction, candidates: Sequence[LocalCheckpoint]) -> bool:
    """Send what waits, if that is wanted, and could make room together with `candidates`."""
    if plan.send is None:
        return False
    waiting = tasks.outbox()
    return bool(waiting) and _enough(plan, [*candidates, *waiting]) and plan.send()


def _enough(plan: Eviction, found: Sequence[LocalCheckpoint]) -> bool:
    """Whether there would be room without all of these."""
    return sum(usage(each.path) for each in found) >= plan.short(measure(plan.root, plan.budget))


def _evict(tasks: SmallDiskTasks, plan: Eviction, found: LocalCheckpoint) -> None:
    manifest, size = found.manifest, usage(found.path)
    with contextlib.suppress(OSError):  # a disk so full that the copy must go first
        note_newest_in_store(plan.root, manifest)
    if not tasks.removals.evict(found.path):
        return
    plan.evicted.append(manifest.checkpoint_id)
    with contextlib.suppress(OSError):  # an event is no checkpoint
        note_newest_in_store(plan.root, manifest)
        note(
            plan.root,
            "evicted",
            checkpoint=manifest.checkpoint_id,
            bytes=size,
            needed_by=plan.checkpoint_id,
            free=measure(plan.root, None).free,
        )


def _why(tasks: SmallDiskTasks, candidates: Sequence[LocalCheckpoint]) -> str:
    """What takes the rest of the disk, for people."""
    waiting, kept = len(tasks.outbox()), tasks.kept_here()
    return (
        f"{len(candidates)} checkpoints on the disk could make room, {waiting} are not in the store"
        f" yet, and {kept} stay: resumed from, protected, or kept by a rule"
    )
