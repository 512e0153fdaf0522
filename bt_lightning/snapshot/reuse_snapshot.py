"""Reuses the bytes of the previous snapshot for a second save of the same step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.snapshot.arena_layout import ArenaLayout, place_files, write_small
from bt_lightning.snapshot.state_files import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.copy_and_torn_check import Capture
    from bt_lightning.snapshot.host_copies import CopyPlanner
    from bt_lightning.worker_messages import FileImage


@dataclass
class PreviousSnapshot:
    """The previous snapshot and its location in the arena; kept until the state may change."""

    snapshot: Snapshot
    placement: ArenaLayout
    capture: Capture
    arena: Arena
    slot: int
    images: dict[str, FileImage]
    """Path -> image of each tensor file."""
    end: int
    """First unused byte of the arena."""

    def share(
        self, snapshot: Snapshot, planner: CopyPlanner, optimizers: Sequence[torch.optim.Optimizer]
    ) -> ArenaLayout | None:
        """Write the small files of `snapshot` to the arena and share its tensor files.

        None if a tensor is a different one, moved, or has other bytes, or if the arena is full.
        """
        if not self._has_files_of(snapshot):
            return None
        copies = planner.plan(snapshot, self.placement, self.arena, optimizers)
        if copies[0] is not self.capture.fixed or not copies[1].already_copied():
            return None
        small = Snapshot({}, snapshot.small_files, (), (), {})
        placement = place_files(small, self.end)
        if placement.end > self.arena.size:
            return None
        write_small(small, placement, self.arena)
        self.end = placement.end
        return placement

    def _has_files_of(self, other: Snapshot) -> bool:
        """Whether the tensor files have the same layout, fragments and changing bytes."""
        files, others = self.snapshot.tensor_files, other.tensor_files
        same = self.snapshot.fingerprint == other.fingerprint and files.keys() == others.keys()
        return same and all(
            file.plan is others[path].plan
            and file.fixed == others[path].fixed
            and file.changing == others[path].changing
            for path, file in files.items()
        )
