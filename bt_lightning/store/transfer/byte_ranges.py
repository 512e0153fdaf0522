"""Which parts of a file are asked for: whole blocks, neighbours together, up to a size. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bt_lightning.manifest import FileEntry


@dataclass(frozen=True, slots=True)
class Range:
    """Some whole blocks of one file, side by side."""

    entry: FileEntry
    offset: int
    """A multiple of `BLOCK_BYTES`."""
    size: int
    """Bytes; a multiple of `BLOCK_BYTES`, unless it reaches the end of the file."""


def ranges(entry: FileEntry, blocks: Iterable[int], most_bytes: int) -> Iterator[Range]:
    """Cover the numbered blocks of a file, given in ascending order, and no others.

    Neighbours share a range of at most `most_bytes`, a multiple of `BLOCK_BYTES`.
    """
    start = end = -1
    for block in blocks:
        if block == end and (end - start) * BLOCK_BYTES < most_bytes:
            end += 1
            continue
        if end > start:
            yield _range(entry, start, end)
        start, end = block, block + 1
    if end > start:
        yield _range(entry, start, end)


def tail(entry: FileEntry, offset: int, most_bytes: int) -> Iterator[Range]:
    """Cover a file from `offset`, a multiple of `BLOCK_BYTES` or its end, in ranges of one size."""
    return ranges(entry, range(-(-offset // BLOCK_BYTES), len(entry.blocks)), most_bytes)


def _range(entry: FileEntry, start: int, end: int) -> Range:
    offset = start * BLOCK_BYTES
    return Range(entry, offset, min(end * BLOCK_BYTES, entry.size) - offset)
