"""The source for copying a checkpoint to another store, through memory only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.file_source import BufferedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class ReaderSource(BufferedSource):
    """A file of a checkpoint in another store or directory: read when it is sent, and verified."""

    def __init__(self, reader: CheckpointReader, entry: FileEntry) -> None:
        self._reader, self.entry = reader, entry
        self.size, self.digest = entry.size, entry.xxh3_128
        self.part_bytes = reader.piece_bytes

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Read the bytes and verify each block."""
        view = memoryview(bytearray(size))
        if size:
            read_verified(self._reader, self.entry, offset, [view])
        yield view
