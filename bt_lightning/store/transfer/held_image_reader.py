"""Read a committed directory from the memory of the worker that wrote it, where that still lives.

A block that differs there is read from the disk, by the second try of `read_verified`: a save that
was under way when the trainer was killed may have overwritten some of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

from bt_lightning.human_units import human_size
from bt_lightning.localdir.held_images import open_held_image
from bt_lightning.store.transfer.block_verifier import cut
from bt_lightning.store.transfer.checkpoint_reader import DirectoryReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.interface import ReadProgress

log = logging.getLogger(__name__)
_MOST_TARGETS = 1024
"""What preadv(2) takes at once (IOV_MAX)."""


class HeldImageReader(DirectoryReader):
    """As `DirectoryReader`; use it in a `with` block as well. Every rank of this machine may."""

    def __init__(self, path: Path) -> None:
        """Read the manifest, as `DirectoryReader`, and look for the memory."""
        super().__init__(path)
        found = open_held_image(path, self.manifest.digest)
        self._memory: int | None = None
        self._offsets: Mapping[str, int] = {}
        if found is not None:
            self._memory, self._offsets = found[0], found[1].offsets
        self._given: dict[str, set[int]] = {}
        """Path -> blocks that were read from the memory: whoever asks again got them damaged."""
        self._noting = threading.Lock()
        self.memory_bytes = self.disk_bytes = 0
        """How many bytes came from where."""

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """As `DirectoryReader.expect`, unless the bytes are in memory."""
        if entry.path not in self._offsets:
            super().expect(entry, offset, size)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Read the file from `offset` on, once from the memory, then from the disk."""
        size = sum(map(len, targets))
        held = self._is_first(entry, offset, size) and self._from_memory(entry, offset, targets)
        if not held:
            super().read_into(entry, offset, targets, on_progress)
        with self._noting:
            self.memory_bytes += size if held else 0
            self.disk_bytes += 0 if held else size

    def _is_first(self, entry: FileEntry, offset: int, size: int) -> bool:
        if entry.path not in self._offsets:
            return False
        block = entry.block_bytes
        blocks = range(offset // block, -(-(offset + size) // block))
        with self._noting:
            given = self._given.setdefault(entry.path, set())
            again = not given.isdisjoint(blocks)
            given.update(blocks)
        return not again

    def _from_memory(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> bool:
        assert self._memory is not None
        at, left = self._offsets[entry.path] + offset, list(targets)
        with contextlib.suppress(OSError):
            while left:
                count = os.preadv(self._memory, left[:_MOST_TARGETS], at)
                if not count:
                    return False
                at, left = at + count, cut(left, count, entry.size)
            return True
        return False

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self.memory_bytes:
            log.info(
                "read %s of %s from the memory of the killed run's worker, %s from the disk",
                human_size(self.memory_bytes),
                self.name,
                human_size(self.disk_bytes),
            )
        if self._memory is not None:
            os.close(self._memory)
            self._memory, self._offsets = None, {}
