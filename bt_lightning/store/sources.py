"""Bytes that are sent to a store: of a committed file, verified block by block as they are read."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Protocol

import xxhash
from typing_extensions import Self

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.store.port import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.manifest import FileEntry

PIECE_BYTES = 32 * 1024 * 1024
"""Bytes that are held at a time, unless more must be: a multiple of `BLOCK_BYTES`."""


class DescribedSource(Source, Protocol):
    """A source of which the manifest's entry is known."""

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of the bytes."""


class FileSource:
    """A file of a committed checkpoint. Use it in a `with` block, or close it.

    Each thread that holds bytes has one buffer, so it may hold one range at a time.
    """

    def __init__(self, file: Path, entry: FileEntry) -> None:
        self.entry = entry
        self._place = str(file)
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._local = threading.local()

    part_bytes = PIECE_BYTES

    @property
    def size(self) -> int:
        """Bytes, as the manifest says."""
        return self.entry.size

    @property
    def digest(self) -> str:
        """XXH3-128, as the manifest says."""
        return self.entry.xxh3_128

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Read the bytes, and compare each block with its digest."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(size)
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if not count:
                msg = f"{self._place} is damaged: it ends at {offset + done} of {self.size} bytes"
                raise CheckpointCorruptError(msg)
            done += count
        self._check(view, offset)
        yield view

    def _check(self, view: memoryview, offset: int) -> None:
        first = offset // BLOCK_BYTES
        for start in range(0, len(view), BLOCK_BYTES):
            block = first + start // BLOCK_BYTES
            found = xxhash.xxh3_128_hexdigest(view[start : start + BLOCK_BYTES])
            if found != self.entry.blocks[block]:
                msg = (
                    f"{self._place} is damaged: its bytes are not those that were saved"
                    f" (XXH3-128 differs, 4 MiB block {block})"
                )
                raise CheckpointCorruptError(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def pieces(source: Source) -> Iterator[memoryview]:
    """All bytes of `source` in order; each piece is good until the next is asked for."""
    for offset in range(0, source.size, source.part_bytes):
        with source.hold(offset, min(source.part_bytes, source.size - offset)) as piece:
            yield piece


def same_ranges(entry: FileEntry, other: FileEntry) -> tuple[tuple[int, int], ...]:
    """(offset, size) of what two files have in common at the same places, by their digests.

    Ascending, in bytes, each as long as can be.
    """
    if entry == other:
        return ((0, entry.size),) if entry.size else ()
    ranges: list[tuple[int, int]] = []
    for index, (one, two) in enumerate(zip(entry.blocks, other.blocks, strict=False)):
        offset = index * BLOCK_BYTES
        size = min(BLOCK_BYTES, entry.size - offset)
        if one != two or offset + size > other.size:
            continue
        if ranges and sum(ranges[-1]) == offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
        else:
            ranges.append((offset, size))
    return tuple(ranges)


def whole(source: Source, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether `ranges` of a `Reuse` cover every byte of `source`."""
    return ranges == ((0, source.size),)
