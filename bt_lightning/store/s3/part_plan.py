"""How an object is cut into parts. Pure.

Limits of S3: 10,000 parts; each of 5 MiB to 5 GiB, but for the last, which may be smaller. Bytes
that are sent begin and end at the blocks by which a source verifies itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAN_VERSION: Final = 1
"""Another whenever `plan_parts` cuts otherwise: uploads that were begun before begin anew."""
MAX_PARTS: Final = 10_000
PART_BYTES: Final = 32 * 1024 * 1024
"""Of a part that is sent, at least: serves fast links and slow ones (docs/design.md)."""
_SIDE_BY_SIDE: Final = 16
"""Connections that should come to their ends together."""
COPY_BYTES: Final = 256 * 1024 * 1024
"""Of a part that the server copies: a request must be answered before the read timeout."""
LEAST_BYTES: Final = 2 * BLOCK_BYTES
"""Of a part that is not the last: the fewest whole blocks above 5 MiB."""


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
    """A part that the server takes from another object, at the same offset."""

    __slots__ = ()


def part_size(size: int, least: int = PART_BYTES) -> int:
    """Bytes of a part for an object of `size` bytes: `least` to twice that.

    Larger ones cost less, and as few as fill all connections equally often are best. Of objects
    above 10,000 times that, as few as `MAX_PARTS` allow.
    """
    rounds = -(-size // (_SIDE_BY_SIDE * 2 * least))
    even = _up(-(-size // (_SIDE_BY_SIDE * rounds))) if size else 0
    return max(min(max(even, least), 2 * least), _up(-(-size // MAX_PARTS)))


def plan_parts(
    size: int, part: int, reuse: Iterable[tuple[int, int]] = ()
) -> tuple[Send | Copy, ...]:
    """Cover [0, size) exactly once, in order, by parts that S3 takes.

    `part` is the size of a part that is sent, a multiple of `BLOCK_BYTES`. `reuse` names (offset,
    size) of what may be copied; what is too small for that is sent.
    """
    parts: list[Send | Copy] = []
    position = 0
    for start, end in _copyable(size, reuse):
        if start > position:
            parts += _cut(Send, position, start, part)
        parts += _cut(Copy, start, end, max(COPY_BYTES, part_size(size)))
        position = end
    while position < size:  # equal parts to the end: some servers insist where nothing is copied
        parts.append(Send(position, min(part, size - position)))
        position += part
    if len(parts) > MAX_PARTS and any(isinstance(each, Copy) for each in parts):
        return plan_parts(size, part)
    return tuple(parts)


def _copyable(size: int, reuse: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of what can be copied so that what lies between is never too small to send."""
    found: list[tuple[int, int]] = []
    position = 0
    for offset, length in reuse:
        start = max(_up(offset), position)
        if 0 < start - position < LEAST_BYTES:
            start = position + LEAST_BYTES  # the gap takes some of what could be copied
        end = min(offset + length, size)
        end = end if end == size else _down(end)
        if end - start >= LEAST_BYTES:
            found.append((start, end))
            position = end
    return found


def _cut(kind: type[Send | Copy], start: int, end: int, most: int) -> Iterable[Send | Copy]:
    """Parts of nearly equal size, so that none is left too small; the last takes the odd bytes."""
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
