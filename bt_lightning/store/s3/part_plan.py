"""Plan the parts of a multipart upload: which are sent and which are copied. Pure.

S3 allows 10,000 parts of 5 MiB to 5 GiB each; the last may be smaller. Parts that are sent begin
and end at the blocks by which a source is verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAN_VERSION: Final = 1
"""Raise it when `plan_parts` changes: then unfinished uploads are not resumed but sent again."""
MAX_PARTS: Final = 10_000
PART_BYTES: Final = 32 * 1024 * 1024
"""Least size of a part that is sent: serves fast links and slow ones (docs/design.md)."""
_SIDE_BY_SIDE: Final = 16
"""Number of connections among which the parts should divide evenly."""
COPY_BYTES: Final = 256 * 1024 * 1024
"""Largest part that the server copies: the answer must come before the read timeout."""
LEAST_BYTES: Final = 2 * BLOCK_BYTES
"""Least size of a part that is not the last: the fewest whole blocks above 5 MiB."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of an object, sent as one part."""

    offset: int
    size: int
    """Bytes."""


class Send(Part):
    """A part whose bytes cross the network."""

    __slots__ = ()


class Copy(Part):
    """A part that the server copies from another object, at the same offset."""

    __slots__ = ()


def part_size(size: int, least: int = PART_BYTES) -> int:
    """Size of a part for an object of `size` bytes: `least` to twice `least`.

    Larger parts cost less, and an equal number for each connection is best. For objects of more
    than `MAX_PARTS` such parts, the least size that `MAX_PARTS` allows.
    """
    rounds = -(-size // (_SIDE_BY_SIDE * 2 * least))
    even = _up(-(-size // (_SIDE_BY_SIDE * rounds))) if size else 0
    return max(min(max(even, least), 2 * least), _up(-(-size // MAX_PARTS)))


def plan_parts(
    size: int, part: int, reuse: Iterable[tuple[int, int]] = ()
) -> tuple[Send | Copy, ...]:
    """Cover [0, size) exactly once, in order, by parts that S3 accepts.

    `part` is the size of a part that is sent, a multiple of `BLOCK_BYTES`. `reuse` holds (offset,
    size) of the ranges that may be copied; ranges that are too small for a copy are sent.
    """
    parts: list[Send | Copy] = []
    position = 0
    for start, end in _copyable(size, reuse):
        if start > position:
            parts += _cut(Send, position, start, part)
        parts += _cut(Copy, start, end, max(COPY_BYTES, part_size(size)))
        position = end
    while position < size:  # equal parts to the end: some servers require it without copies
        parts.append(Send(position, min(part, size - position)))
        position += part
    if len(parts) > MAX_PARTS and any(isinstance(each, Copy) for each in parts):
        return plan_parts(size, part)
    return tuple(parts)


def _copyable(size: int, reuse: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of the ranges to copy; the gaps between them are never too small to send."""
    found: list[tuple[int, int]] = []
    position = 0
    for offset, length in reuse:
        start = max(_up(offset), position)
        if 0 < start - position < LEAST_BYTES:
            start = position + LEAST_BYTES  # the gap grows into the range that could be copied
        end = min(offset + length, size)
        end = end if end == size else _down(end)
        if end - start >= LEAST_BYTES:
            found.append((start, end))
            position = end
    return found


def _cut(kind: type[Send | Copy], start: int, end: int, most: int) -> Iterable[Send | Copy]:
    """Parts of nearly equal size, so that none is too small; the last takes the odd bytes."""
    blocks = (end - start) // BLOCK_BYTES
    count = max(1, min(-(-(end - start) // most), (end - start) // LEAST_BYTES))
    for number in range(count):
        first = start + blocks * number // count * BLOCK_BYTES
        last = start + blocks * (number + 1) // count * BLOCK_BYTES
        yield kind(first, (end if number + 1 == count else last) - first)


def _up(offset: int) -> int:
    return -(-offset // BLOCK_BYTES) * BLOCK_BYTES


def _down(offset: int) -> int:
    return offset // BLOCK_BYTES * BLOCK_BYTES
