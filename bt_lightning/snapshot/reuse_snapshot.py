"""The snapshot that was taken last, while another save of the same moment may share its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.snapshot.arena_layout import ArenaLayout, place_files
from bt_lightning.snapshot.state_files import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.capture import Capture
    from bt_lightning.snapshot.host_copies import Sorter
    from bt_lightning.worker_messages import FileImage


@dataclass
class PreviousSnapshot:
    """What lies in the arena, and where; kept until the state may change."""

    snapshot: Snapshot
    placement: ArenaLayout
    capture: Capture
    arena: Arena
    slot: int
    images: dict[str, FileImage]
    """Path -> image of each tensor file."""
    end: int
    """First byte of the arena behind everything that was put there."""

    def share(
        self, snapshot: Snapshot, sorter: Sorter, optimizers: Sequence[torch.optim.Optimizer]
    ) -> ArenaLayout | None:
        """Put the small files of `snapshot` behind the bytes that it shares.

        None if any of its tensors is another, elsewhere, or has other bytes, or there is no room.
        """
        if not self._has_files_of(snapshot):
            return None
        copies = sorter.sort(snapshot, self.placement, self.arena, optimizers)
        if copies[0] is not self.capture.fixed or not copies[1].same():
            return None
        placement = place_files(Snapshot({}, snapshot.small_files, (), (), {}), self.end)
        if placement.end > self.arena.size:
            return None
        for path, content in snapshot.small_files.items():
            self.arena.write(placement.starts[path], content)
        self.end = placement.end
        return placement

    def _has_files_of(self, other: Snapshot) -> bool:
        """Whether the tensor files have one layout, and their large groups are the same objects."""
        files, others = self.snapshot.tensor_files, other.tensor_files
        return files.keys() == others.keys() and all(
            file.plan is others[path].plan and file.fixed == others[path].fixed
            for path, file in files.items()
        )
