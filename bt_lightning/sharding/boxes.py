"""Boxes: the parts of a tensor that ranks hold."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A part of a tensor, in items; a tensor without dimensions has the box without any."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def items(self) -> int:
        """Number of items, 0 for an empty box."""
        return math.prod(self.sizes)

    @property
    def ends(self) -> tuple[int, ...]:
        """One past the last index of each dimension."""
        return tuple(map(sum, zip(self.offsets, self.sizes, strict=True)))

    def intersection(self, other: Box) -> Box | None:
        """The items of both; None if there are none."""
        first = tuple(map(max, zip(self.offsets, other.offsets, strict=True)))
        ends = tuple(map(min, zip(self.ends, other.ends, strict=True)))
        sizes = tuple(end - begin for begin, end in zip(first, ends, strict=True))
        return Box(first, sizes) if all(size > 0 for size in sizes) else None


def whole_box(shape: Sequence[int]) -> Box:
    """The box of all of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def chunk(length: int, parts: int, index: int) -> tuple[int, int]:
    """Offset and length of a part, as `torch.chunk` divides; the last parts may be empty."""
    size = -(-length // parts)
    begin = min(length, size * index)
    return begin, min(length, begin + size) - begin


def tiles(shape: Sequence[int], boxes: Iterable[Box]) -> bool:
    """Whether the boxes cover a tensor of this shape, each item exactly once.

    Exact and linear in the boxes: the corners of boxes, with a sign by their parity, cancel out but
    for those of the tensor if and only if the sum of the boxes is the tensor (the mixed difference
    of a function of bounded support is zero only if the function is).
    """
    full = whole_box(shape)
    parts = [box for box in boxes if box.items]
    if not full.items:
        return not parts
    if any(len(box.sizes) != len(full.sizes) for box in parts):
        return False
    divided = [
        dim
        for dim, length in enumerate(full.sizes)
        if any((box.offsets[dim], box.sizes[dim]) != (0, length) for box in parts)
    ]
    corners: Counter[tuple[int, ...]] = Counter()
    for box, weight in [*((part, 1) for part in parts), (full, -1)]:
        edges = [(box.offsets[dim], box.offsets[dim] + box.sizes[dim]) for dim in divided]
        for choice in itertools.product((0, 1), repeat=len(divided)):
            corner = tuple(edge[side] for edge, side in zip(edges, choice, strict=True))
            corners[corner] += weight * (-1) ** sum(choice)
    return not any(corners.values())
