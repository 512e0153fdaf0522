"""Reads of boxes, compared with slices of numpy arrays."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.sharding.boxes import Box
from bt_lightning.sharding.read_plan import SavedBox, blocks_of, copy_of, plan_reads

ITEM = 4


@st.composite
def shapes_and_cuts(draw):
    """A shape and, for each dimension, where saved boxes divide it; a wanted box."""
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))}) for n in shape]
    bounds = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    wanted = Box(tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds))
    return shape, cuts, wanted


def saved_file(shape, cuts):
    """A file with a box for each cell of the cuts, behind some other bytes; and the tensor."""
    whole = np.arange(math.prod(shape), dtype=np.int32).reshape(shape) + 1
    boxes, data = [], b"header!"
    grid = np.ndindex(*[len(each) - 1 for each in cuts])
    for cell in grid:
        edges = [list(pairwise(each))[i] for each, i in zip(cuts, cell, strict=True)]
        box = Box(tuple(a for a, _ in edges), tuple(b - a for a, b in edges))
        boxes.append(SavedBox(box, "file", len(data)))
        data += whole[tuple(slice(a, b) for a, b in edges)].tobytes() + b"gap"
    return whole, boxes, data


def strided(buffer, copy, start, steps):
    shape = [loop.count for loop in copy.loops]
    return np.lib.stride_tricks.as_strided(buffer[start:], [*shape, copy.run], [*steps, 1])


def carry_out(copy, data, target, counts):
    source = strided(data, copy, copy.source, [x.source_step for x in copy.loops])
    strided(target, copy, copy.target, [x.target_step for x in copy.loops])[...] = source
    strided(counts, copy, copy.target, [x.target_step for x in copy.loops])[...] += 1


@given(shapes_and_cuts(), st.integers(1, 40))
def test_copies_are_the_slice_and_fill_each_byte_once(case, window):
    shape, cuts, wanted = case
    whole, boxes, data = saved_file(shape, cuts)
    source = np.frombuffer(data, np.uint8)
    expected = whole[tuple(slice(a, b) for a, b in zip(wanted.offsets, wanted.ends, strict=True))]
    copies = [copy for _, copy in plan_reads("w", wanted, boxes, ITEM)]
    assert sum(copy.size for copy in copies) == expected.nbytes
    for parts in (
        copies,
        [
            part
            for copy in copies
            for begin in range(0, len(data), window)
            for part in copy.within(begin, begin + window)
        ],
    ):
        target, counts = np.zeros(expected.nbytes, np.uint8), np.zeros(expected.nbytes, np.uint8)
        for part in parts:
            carry_out(part, source, target, counts)
        assert target.tobytes() == expected.tobytes()
        assert (counts == 1).all()


@given(shapes_and_cuts(), st.integers(1, 40))
def test_blocks_are_those_with_wanted_bytes(case, block):
    shape, cuts, wanted = case
    _, boxes, data = saved_file(shape, cuts)
    copies = [copy for _, copy in plan_reads("w", wanted, boxes, ITEM)]
    needed = set()
    for copy in copies:
        for part in copy.within(0, len(data)):
            for starts in np.ndindex(*[x.count for x in part.loops]):
                at = part.source + sum(
                    i * x.source_step for i, x in zip(starts, part.loops, strict=True)
                )
                needed.update(b // block for b in range(at, at + part.run))
    found = blocks_of(copies, block)
    assert found == sorted(set(found))
    assert needed <= set(found)
    # a gap of at most a block is read as well, and no more
    assert all(block in needed or {block - 1, block + 1} & needed for block in found)


def test_a_column_cut_is_one_copy_however_many_rows_it_has():
    saved, wanted = Box((0, 0), (100_000, 64)), Box((0, 16), (100_000, 16))
    copy = copy_of(saved, wanted, 4096, ITEM)
    assert (copy.run, len(copy.loops), copy.size) == (64, 1, 100_000 * 64)
    assert len(list(copy.within(4096 + 1000, 4096 + 1_000_000))) <= 3
    assert list(copy.spans(1 << 22)) == [(copy.source, copy.end)]


def test_rows_far_apart_are_read_alone():
    saved, wanted = Box((0, 0), (3, 4 << 20)), Box((0, 0), (3, 10))
    copy = copy_of(saved, wanted, 0, ITEM)
    assert blocks_of([copy], 4 << 20) == [0, 4, 8]


def test_whole_rows_are_one_run():
    copy = copy_of(Box((4, 0, 0), (8, 3, 5)), Box((0, 0, 0), (6, 3, 5)), 100, ITEM)
    assert (copy.source, copy.target, copy.run, copy.loops) == (100, 240, 120, ())


def test_a_hole_is_named():
    saved = [SavedBox(Box((0, 0), (2, 6)), "a", 0), SavedBox(Box((3, 0), (3, 6)), "b", 0)]
    with pytest.raises(CheckpointCorruptError, match=r"lacks 4 of the 24 items of 'w'.*\[2:3, 1:5"):
        plan_reads("w", Box((0, 1), (6, 4)), saved, ITEM)


def test_items_that_are_there_twice_are_an_error():
    saved = [SavedBox(Box((0,), (4,)), "a", 0), SavedBox(Box((3,), (3,)), "b", 0)]
    with pytest.raises(CheckpointCorruptError, match="1 items of 'w' twice"):
        plan_reads("w", Box((0,), (6,)), saved, ITEM)
    assert [file for file, _ in plan_reads("w", Box((0,), (2,)), saved, ITEM)] == ["a"]


def test_an_empty_box_and_a_scalar():
    saved = [SavedBox(Box((), ()), "a", 24)]
    assert plan_reads("step", Box((), ()), saved, ITEM)[0][1].run == ITEM
    assert plan_reads("w", Box((5,), (0,)), [SavedBox(Box((0,), (5,)), "a", 0)], ITEM) == []
