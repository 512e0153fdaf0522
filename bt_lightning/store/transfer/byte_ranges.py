"""Plan the byte ranges of a download: whole blocks, adjacent ones joined up to a limit. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bt_lightning.manifest import FileEntry


@dataclass(frozen=True, slots=True)
class Range:
    """Adjacent whole blocks of one file."""

    entry: FileEntry
    offset: int
    """A multiple of `BLOCK_BYTES`."""
    size: int
    """Bytes; a multiple of `BLOCK_BYTES`, except at the end of the file."""


def ranges(entry: FileEntry, blocks: Iterable[int], most_bytes: int) -> Iterator[Range]:
    """Yield ranges that cover exactly the blocks with these numbers, which ascend.

    Adjacent blocks share a range of at most `most_bytes`, a multiple of `BLOCK_BYTES`.
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


def ranges_to_end(entry: FileEntry, offset: int, most_bytes: int) -> Iterator[Range]:
    """Yield ranges of `most_bytes` from `offset` to the end of the file.

    `offset` is a multiple of `BLOCK_BYTES`, or the end of the file.
    """
    return ranges(entry, range(-(-offset // BLOCK_BYTES), len(entry.blocks)), most_bytes)


def _range(entry: FileEntry, start: int, end: int) -> Range:
    offset = start * BLOCK_BYTES
    return Range(entry, offset, min(end * BLOCK_BYTES, entry.size) - offset)
