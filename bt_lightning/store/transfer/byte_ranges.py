"""Plan the byte ranges of a download: whole blocks, adjacent ones joined up to a limit. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bt_lightning.file_entries import FileEntry


@dataclass(frozen=True, slots=True)
class Range:
    """Adjacent whole blocks of one file."""

    entry: FileEntry
    offset: int
    """A multiple of the file's `block_bytes`."""
    size: int
    """Bytes; a multiple of `block_bytes`, except at the end of the file."""


def ranges(
    entry: FileEntry, blocks: Iterable[int], most_bytes: int, gap_bytes: int = 0
) -> Iterator[Range]:
    """Yield ranges that cover the blocks with these numbers, which ascend.

    Adjacent blocks share a range of at most `most_bytes`, a multiple of the file's `block_bytes`;
    so do those with at most `gap_bytes` between them, which are read as well.
    """
    most, gap = most_bytes // entry.block_bytes, gap_bytes // entry.block_bytes
    start = end = -1
    for block in blocks:
        if 0 <= block - end <= gap and block - start < most and end > start:
            end = block + 1
            continue
        if end > start:
            yield _range(entry, start, end)
        start, end = block, block + 1
    if end > start:
        yield _range(entry, start, end)


def ranges_to_end(entry: FileEntry, offset: int, most_bytes: int) -> Iterator[Range]:
    """Yield ranges of `most_bytes` from `offset` to the end of the file.

    `offset` is a multiple of the file's `block_bytes`, or the end of the file.
    """
    return ranges(entry, range(-(-offset // entry.block_bytes), len(entry.blocks)), most_bytes)


def _range(entry: FileEntry, start: int, end: int) -> Range:
    offset = start * entry.block_bytes
    return Range(entry, offset, min(end * entry.block_bytes, entry.size) - offset)
