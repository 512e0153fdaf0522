"""Small copies by few system calls come to the same bytes as one by one."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.snapshot.arena import Arena
from bt_lightning.snapshot.encoding_cache import comparison_with
from bt_lightning.snapshot.small_copies import SmallCopies

SIZE = 1 << 16


@pytest.mark.parametrize("works", [True, False], ids=["pwritev", "one-by-one"])
@settings(deadline=None, database=None, max_examples=30)
@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=2500))
def test_every_piece_arrives_in_its_place_and_nothing_else_changes(works, sizes):
    """More pieces than one call takes, with and without gaps, in any order; also cut off."""
    source = (ctypes.c_ubyte * SIZE)(*random.Random(0).randbytes(SIZE))
    arena = Arena(0, SIZE * 2)
    expected, pieces, place, here = bytearray(SIZE * 2), [], 0, 0
    try:
        for size, gap in sizes:
            place, here = place + gap, (here + 7 * size) % (SIZE - size)
            pieces.append((arena.address + place, ctypes.addressof(source) + here, size))
            expected[place : place + size] = bytes(source[here : here + size])
            place += size
        random.Random(1).shuffle(pieces)
        SmallCopies(pieces, arena.address).copy(arena.descriptor if works else -1)
        assert arena.read(0, SIZE * 2) == bytes(expected)
    finally:
        arena.close()


def state(count):
    return {
        index: {"step": torch.zeros(()), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
        for index in range(count)
    }


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize(
    "change",
    [
        lambda inner: inner.update(step=1.0),
        lambda inner: inner.update(more=torch.ones(1)),
        lambda inner: inner.pop("exp_avg"),
        lambda inner: inner.update(exp_avg=torch.nn.Parameter(torch.ones(3))),
        lambda inner: inner.update(exp_avg=torch.ones(3)),
        lambda inner: inner.update(exp_avg=None),
        lambda inner: inner.update(exp_avg=inner.pop("exp_avg")),
    ],
)
def test_a_group_in_which_one_of_many_like_dicts_differs_is_another(at, change):
    """Thousands of dicts of one form are compared in a shorter way."""
    group = state(5)
    same = comparison_with(group)
    assert same is not None
    assert same(group)
    change(group[at])
    assert not same(group)


def test_a_group_whose_first_dict_is_of_another_form_is_watched_as_well():
    group = {0: {"step": 1.0, "m": torch.ones(1)}, **{k + 1: v for k, v in state(3).items()}}
    same = comparison_with(group)
    assert same is not None
    assert same(dict(group))
    group[0]["step"] = 2.0
    assert not same(group)
