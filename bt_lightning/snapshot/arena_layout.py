"""Offsets of the files of one snapshot in an arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.snapshot.safetensors_layout import ALIGNMENT
from bt_lightning.worker_messages import FileImage

if TYPE_CHECKING:
    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.state_files import Snapshot

_SLACK = 4 * 1024 * 1024
_MOST = 1 << 50
"""Bytes, more than any arena has: gives each file of each save a distinct content number."""


@dataclass(frozen=True)
class ArenaLayout:
    """Offsets and sizes in bytes of the files of one snapshot, by path in the checkpoint."""

    starts: dict[str, int]
    sizes: dict[str, int]
    end: int
    """First byte of the arena after the last file."""
    zipped: frozenset[str] = frozenset()
    """Paths of the zip files."""

    def images(self, number: int) -> tuple[FileImage, ...]:
        """The files as the worker's messages describe them; `number` is the save's number."""
        return tuple(
            FileImage(
                path=path,
                offset=start,
                size=self.sizes[path],
                content=number * _MOST + start,
                zipped=path in self.zipped,
            )
            for path, start in self.starts.items()
        )


def place_files(snapshot: Snapshot, start: int = 0) -> ArenaLayout:
    """Place the files one after another from `start`, page-aligned, tensor files first.

    Small files vary in size between saves; placed last, they do not move the tensor files.
    """
    sizes = {path: file.plan.size for path, file in snapshot.tensor_files.items()}
    sizes.update({path: len(content) for path, content in snapshot.small_files.items()})
    starts, place = {}, aligned(start)
    for path, size in sizes.items():
        starts[path] = place
        place = aligned(place + size)
    zipped = frozenset(path for path, file in snapshot.tensor_files.items() if file.layout)
    return ArenaLayout(starts, sizes, place, zipped)


def write_small(snapshot: Snapshot, placement: ArenaLayout, arena: Arena) -> None:
    """Write the small files, and what of the others is made at each save."""
    for path, file in snapshot.tensor_files.items():
        for offset, content in ((0, file.plan.header), *file.changing):
            arena.write(placement.starts[path] + offset, content)
    for path, content in snapshot.small_files.items():
        arena.write(placement.starts[path], content)


def aligned(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def arena_size(size: int) -> int:
    """Bytes to allocate for snapshots of about `size` bytes, with a margin for small changes."""
    return aligned(size + size // 64 + _SLACK)
