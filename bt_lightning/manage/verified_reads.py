"""Bytes of a file of a checkpoint, verified against its manifest, wherever it lies."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


@contextlib.contextmanager
def open_reader(shelf: JobCheckpoints, item: CheckpointItem) -> Iterator[CheckpointReader]:
    """The place of an item; a directory's files are closed in the end."""
    with contextlib.ExitStack() as stack:
        place = shelf.reader(item)
        if isinstance(place, contextlib.AbstractContextManager):
            stack.enter_context(place)
        yield place


def read_file(shelf: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> bytes:
    """All bytes of a file.

    Raises:
        CheckpointCorruptError: they are not what was saved.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    with open_reader(shelf, item) as place:
        return read_item_range(place, entry, 0, entry.size)


def read_item_range(place: CheckpointReader, entry: FileEntry, start: int, end: int) -> bytes:
    """The bytes `start` to `end` of a file, both inside it; whole blocks are read and verified.

    Raises as `read_file`.
    """
    if start >= end:
        return b""
    first = start - start % BLOCK_BYTES
    last = min(entry.size, -(-end // BLOCK_BYTES) * BLOCK_BYTES)
    buffer = bytearray(last - first)
    place.check(entry)
    read_verified(place, entry, first, [memoryview(buffer)])
    return bytes(buffer[start - first : end - first])
