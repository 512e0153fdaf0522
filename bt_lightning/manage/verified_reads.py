"""Reads of a checkpoint's files, verified against its manifest, from a directory or a store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


@contextlib.contextmanager
def open_reader(source: JobCheckpoints, item: CheckpointItem) -> Iterator[CheckpointReader]:
    """Yield a reader of a checkpoint; a directory's files are closed at the end.

    It reads the manifest, and lists the folder in a store: open one for all that is read.

    Raises:
        CheckpointNotFoundError: the checkpoint was deleted or replaced since it was listed.
        CheckpointCorruptError: its manifest is damaged.
        StoreError: the store refused.
    """
    with contextlib.ExitStack() as stack:
        reader = source.reader(item)
        if isinstance(reader, contextlib.AbstractContextManager):
            stack.enter_context(reader)
        if reader.manifest.files != item.manifest.files:
            msg = f"{item.name} was replaced since it was listed: run the command again"
            raise CheckpointNotFoundError(msg)
        yield reader


def read_file(source: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> bytes:
    """All bytes of a file, verified.

    Raises:
        CheckpointCorruptError: they differ from the manifest.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    with open_reader(source, item) as reader:
        return read_open_file(reader, entry)


def read_open_file(reader: CheckpointReader, entry: FileEntry) -> bytes:
    """As `read_file`, of a checkpoint that is open."""
    return read_item_range(reader, entry, 0, entry.size)


def read_item_range(reader: CheckpointReader, entry: FileEntry, start: int, end: int) -> bytes:
    """The bytes `start` to `end` of a file, both inside it; whole blocks are read and verified.

    A file without digests is read as it is.

    Raises as `read_file`.
    """
    if start >= end:
        return b""
    if not entry.blocks:  # no worker has committed it
        plain = bytearray(end - start)
        reader.read_into(entry, start, [memoryview(plain)])
        return bytes(plain)
    first = start - start % entry.block_bytes
    last = min(entry.size, -(-end // entry.block_bytes) * entry.block_bytes)
    buffer = bytearray(last - first)
    reader.check(entry)
    read_verified(reader, entry, first, [memoryview(buffer)])
    return bytes(buffer[start - first : end - first])
