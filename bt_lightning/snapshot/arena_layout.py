"""Where the files of one snapshot lie in an arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.snapshot.safetensors_layout import ALIGNMENT
from bt_lightning.worker_messages import FileImage

if TYPE_CHECKING:
    from bt_lightning.snapshot.state_files import Snapshot

_SLACK = 4 * 1024 * 1024
_MOST = 1 << 50
"""Bytes; no arena is as large, so that each file of each save has a content number of its own."""


@dataclass(frozen=True)
class ArenaLayout:
    """Path of each file -> its first byte in the arena; and the end of the last one."""

    starts: dict[str, int]
    sizes: dict[str, int]
    end: int

    def images(self, number: int) -> tuple[FileImage, ...]:
        """What the worker is told; `number` is that of the save whose bytes they are."""
        return tuple(
            FileImage(
                path=path, offset=start, size=self.sizes[path], content=number * _MOST + start
            )
            for path, start in self.starts.items()
        )


def place_files(snapshot: Snapshot, start: int = 0) -> ArenaLayout:
    """Put the files behind each other from `start`, each at a page; tensors come first.

    What is small varies in size from save to save, so it comes last: the tensors keep their places.
    """
    sizes = {path: file.plan.size for path, file in snapshot.tensor_files.items()}
    sizes.update({path: len(content) for path, content in snapshot.small_files.items()})
    starts, place = {}, aligned(start)
    for path, size in sizes.items():
        starts[path] = place
        place = aligned(place + size)
    return ArenaLayout(starts, sizes, place)


def aligned(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def capacity(size: int) -> int:
    """Bytes of an arena for images of about `size` bytes: room for what varies."""
    return aligned(size + size // 64 + _SLACK)
