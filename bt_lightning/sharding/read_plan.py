"""The plan of a read: which bytes of which files make a wanted box, and where each of them goes.

Bytes of a box are row-major. What two boxes share is one `BoxCopy`, however many rows it has, so
that a reader reads whole spans and scatters them, and never asks for one row at a time.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.sharding.boxes import Box, tiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class SavedBox:
    """A box of a tensor, and where its bytes are."""

    box: Box
    file: str
    offset: int
    """Of its first byte in the file."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Repetition along one dimension; steps are in bytes."""

    count: int
    source_step: int
    target_step: int


@dataclass(frozen=True, slots=True)
class BoxCopy:
    """Runs of bytes of a file, at regular distances, and their places in a target."""

    source: int
    """Offset of the first byte in the file."""
    target: int
    """Offset of that byte in the target."""
    run: int
    """Bytes of each run."""
    loops: tuple[Loop, ...] = ()
    """Outermost first; without any there is one run."""

    @property
    def size(self) -> int:
        """Bytes of all runs."""
        return self.run * math.prod(loop.count for loop in self.loops)

    @property
    def end(self) -> int:
        """One past the last byte in the file."""
        return self.source + self.run + sum((x.count - 1) * x.source_step for x in self.loops)

    def spans(self, most_gap: int) -> Iterator[tuple[int, int]]:
        """Begin and end, ascending, of stretches of the file with gaps of at most `most_gap`."""
        if self.loops:
            inner = self._inner(0)
            if self.loops[0].source_step - (inner.end - inner.source) > most_gap:
                for index in range(self.loops[0].count):
                    yield from self._inner(index).spans(most_gap)
                return
        yield self.source, self.end

    def within(self, begin: int, end: int) -> Iterator[BoxCopy]:
        """The parts of it that lie in a range of the file; a few, however many runs there are."""
        if begin <= self.source and self.end <= end:
            yield self
        elif self.source < end and self.end > begin:
            yield from self._inside(begin, end) if self.loops else self._cut(begin, end)

    def _cut(self, begin: int, end: int) -> Iterator[BoxCopy]:
        first = max(begin, self.source)
        size = min(end, self.source + self.run) - first
        if size > 0:
            yield BoxCopy(first, self.target + first - self.source, size)

    def _inside(self, begin: int, end: int) -> Iterator[BoxCopy]:
        outer = self.loops[0]
        inner = self._inner(0)
        length = inner.end - inner.source
        # the first turn that begins in the range, and the first that does not end in it
        first = max(0, -(-(begin - self.source) // outer.source_step))
        last = min(outer.count, (end - self.source - length) // outer.source_step + 1)
        if first < last:
            whole = self._inner(first)
            loop = Loop(last - first, outer.source_step, outer.target_step)
            yield BoxCopy(whole.source, whole.target, self.run, (loop, *self.loops[1:]))
        for index in {first - 1, max(first, last)}:
            if 0 <= index < outer.count:
                yield from self._inner(index).within(begin, end)

    def _inner(self, index: int) -> BoxCopy:
        """One turn of the outermost loop."""
        outer, *rest = self.loops
        return BoxCopy(
            self.source + index * outer.source_step,
            self.target + index * outer.target_step,
            self.run,
            tuple(rest),
        )


def copy_of(saved: Box, wanted: Box, offset: int, item_bytes: int) -> BoxCopy | None:
    """What a wanted box takes of a saved one whose bytes begin at `offset`; None: nothing."""
    both = saved.intersection(wanted)
    if both is None:
        return None
    source, target, run = offset, 0, item_bytes
    source_step = target_step = item_bytes
    loops: list[Loop] = []
    for dim in reversed(range(len(both.sizes))):
        source += (both.offsets[dim] - saved.offsets[dim]) * source_step
        target += (both.offsets[dim] - wanted.offsets[dim]) * target_step
        count = both.sizes[dim]
        if not loops and source_step == target_step == run:
            run *= count
        elif count > 1:
            _add(loops, Loop(count, source_step, target_step))
        source_step *= saved.sizes[dim]
        target_step *= wanted.sizes[dim]
    return BoxCopy(source, target, run, tuple(reversed(loops)))


def _add(loops: list[Loop], outer: Loop) -> None:
    """Add a loop around those that are there, innermost first; joined to the last if it goes on."""
    if loops:
        last = loops[-1]
        steps = (last.count * last.source_step, last.count * last.target_step)
        if steps == (outer.source_step, outer.target_step):
            loops[-1] = Loop(last.count * outer.count, last.source_step, last.target_step)
            return
    loops.append(outer)


def plan_reads(
    name: str, wanted: Box, saved: Sequence[SavedBox], item_bytes: int
) -> list[tuple[str, BoxCopy]]:
    """File and copy of each saved box that a wanted one has items of; together each item once.

    Raises:
        CheckpointCorruptError: some items are in no saved box, or in two; it names them.
    """
    boxes = tuple(each.box for each in saved)
    copies = _copies(wanted, boxes, item_bytes)
    if copies is None:
        raise CheckpointCorruptError(_uncovered(name, wanted, boxes))
    return [
        (
            saved[index].file,
            BoxCopy(saved[index].offset + each.source, each.target, each.run, each.loops),
        )
        for index, each in copies
    ]


@functools.lru_cache(maxsize=128)  # tensors of many layers have the same boxes
def _copies(
    wanted: Box, saved: tuple[Box, ...], item_bytes: int
) -> tuple[tuple[int, BoxCopy], ...] | None:
    """What a wanted box takes of which saved ones, as if each began its file.

    None if that is not each item once.
    """
    shared = [both for each in saved if (both := each.intersection(wanted))]
    moved = [Box(_minus(box.offsets, wanted.offsets), box.sizes) for box in shared]
    if not tiles(wanted.sizes, moved):
        return None
    each = ((at, copy_of(box, wanted, 0, item_bytes)) for at, box in enumerate(saved))
    return tuple((at, copy) for at, copy in each if copy is not None)


def blocks_of(copies: Iterable[BoxCopy], block_bytes: int, most_gap: int = 0) -> list[int]:
    """Numbers of the blocks of a file that hold bytes of these copies, ascending.

    With those between two runs of a copy that are at most `most_gap` bytes apart.
    """
    found: set[int] = set()
    for copy in copies:
        for begin, end in copy.spans(max(block_bytes, most_gap)):
            found.update(range(begin // block_bytes, -(-end // block_bytes)))
    return sorted(found)


def _uncovered(name: str, wanted: Box, saved: Iterable[Box]) -> str:
    """What is wrong with boxes that do not tile `wanted`."""
    shared = [both for each in saved if (both := each.intersection(wanted))]
    holes, taken = [wanted], 0
    for box in shared:
        holes = [part for hole in holes for part in _without(hole, box)]
        taken += box.items
    left = sum(hole.items for hole in holes)
    if left:
        return (
            f"the checkpoint lacks {left} of the {wanted.items} items of {name!r} that are to be"
            f" loaded, the first at {_slices(min(holes))}: it is damaged, or not all of it is here"
        )
    return (
        f"the checkpoint has {taken - wanted.items} items of {name!r} twice, in"
        f" {_slices(wanted)}: it is damaged"
    )


def _without(whole: Box, gone: Box) -> Iterator[Box]:
    """Disjoint boxes of what is left of a box without another."""
    both = whole.intersection(gone)
    if both is None:
        yield whole
        return
    offsets, sizes = list(whole.offsets), list(whole.sizes)
    for dim, (begin, size) in enumerate(zip(both.offsets, both.sizes, strict=True)):
        for first, last in (
            (offsets[dim], begin),
            (begin + size, offsets[dim] + sizes[dim]),
        ):
            if first < last:
                yield Box(
                    (*offsets[:dim], first, *offsets[dim + 1 :]),
                    (*sizes[:dim], last - first, *sizes[dim + 1 :]),
                )
        offsets[dim], sizes[dim] = begin, size


def _slices(box: Box) -> str:
    return f"[{', '.join(f'{a}:{b}' for a, b in zip(box.offsets, box.ends, strict=True))}]"


def _minus(left: Iterable[int], right: Iterable[int]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(left, right, strict=True))
