"""Every byte goes once, in parts that S3 takes: a part too small loses the whole upload."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.store.s3.part_plan import (
    LEAST_BYTES,
    MAX_PARTS,
    PART_BYTES,
    Copy,
    Send,
    part_size,
    plan_parts,
)

MIB = 1024 * 1024
GIB = 1024 * MIB
relaxed = settings(deadline=None, database=None, max_examples=300)


@st.composite
def objects(draw):
    """Size of an object, and ascending ranges of it that another object holds."""
    size = draw(st.integers(1, 400 * MIB) | st.integers(1, 5 * 1024 * GIB))
    blocks = -(-size // BLOCK_BYTES)
    cuts = sorted(draw(st.sets(st.integers(0, blocks), max_size=24)))
    ranges = []
    for first, last in zip(cuts[::2], cuts[1::2], strict=False):
        odd = draw(st.integers(0, BLOCK_BYTES - 1))
        ranges.append(
            (first * BLOCK_BYTES, min(last * BLOCK_BYTES - odd, size) - first * BLOCK_BYTES)
        )
    return size, ranges


@given(objects(), st.integers(2, 16))
@example((30 * MIB, [(0, 8 * MIB), (12 * MIB, 8 * MIB), (24 * MIB, 6 * MIB)]), 2)
@example((300_000 * MIB, [(i * 12 * MIB, 8 * MIB) for i in range(20_000)]), 8)
@relaxed
def test_parts_cover_the_object_once_and_keep_every_limit(found, blocks):
    size, ranges = found
    part = part_size(size, blocks * BLOCK_BYTES)
    parts = plan_parts(size, part, ranges)
    position = 0
    for each in parts:
        assert each.offset == position
        position += each.size
        assert each.size > 0
        assert each.size <= 5 * GIB
        if each is not parts[-1]:
            assert each.size >= 5 * MIB
            assert each.size % BLOCK_BYTES == 0
        if isinstance(each, Send):
            assert each.size <= max(part, LEAST_BYTES + BLOCK_BYTES), "more memory than was said"
        if isinstance(each, Copy):
            assert any(
                offset <= each.offset and each.offset + each.size <= offset + length
                for offset, length in ranges
            ), "it would copy bytes that the other object does not hold"
    assert position == size
    assert len(parts) <= MAX_PARTS


@given(st.integers(1, 5 * 1024 * GIB))
@relaxed
def test_parts_without_reuse_are_equal_but_for_the_last(size):
    """Some servers refuse others."""
    parts = plan_parts(size, part_size(size))
    assert {type(part) for part in parts} == {Send}
    assert len({part.size for part in parts[:-1]}) <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, PART_BYTES),
        (16 * PART_BYTES, PART_BYTES),
        (10_000 * 2 * PART_BYTES, 2 * PART_BYTES),
        (5 * 1024 * GIB, 528 * MIB),
    ],
)
def test_parts_grow_only_as_far_as_the_limit_asks(size, expected):
    assert part_size(size) == expected


@given(st.integers(1, 40 * GIB))
@relaxed
def test_parts_fill_sixteen_connections_equally_often(size):
    part = part_size(size)
    count = -(-size // part)
    assert PART_BYTES <= part <= 2 * PART_BYTES
    if part > PART_BYTES:
        assert -count % 16 <= count // 8 + 1, "the last round leaves many of them idle"


def test_what_is_the_same_is_copied_and_the_rest_is_sent():
    parts = plan_parts(100 * MIB, 32 * MIB, [(32 * MIB, 64 * MIB)])
    assert parts == (
        Send(0, 32 * MIB),
        Copy(32 * MIB, 64 * MIB),
        Send(96 * MIB, 4 * MIB),
    )
