"""Bytes are compared as they arrive; those that are written again are compared again."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.digest import Hasher
from bt_lightning.store.transfer.checkpoint_reader import NoCopy, read_verified
from bt_lightning.store.transfer.parallel_reads import fill

SIZE = 2 * BLOCK_BYTES + 7
CUTS = (0, 1, BLOCK_BYTES, BLOCK_BYTES + 5, SIZE)


@pytest.fixture(scope="module")
def data():
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def entry(data):
    hasher = Hasher()
    hasher.update(data)
    return hasher.entry("file")


def taking(left, most=SIZE):
    """What reads from the front of `left`, and takes it away."""

    def read(view):
        size = min(len(view), len(left), most)
        view[:size], left[:size] = left[:size], b""
        return size

    return read


class Trying(NoCopy):
    """A place where each try is made of (bytes of it, which of them are wrong)."""

    name = "somewhere"

    def __init__(self, data, *tries):
        self.data, self.tries, self.asked = data, list(tries), []

    def read_into(self, entry, offset, targets, on_progress=int):
        del entry
        self.asked.append((offset, sum(map(len, targets))))
        while True:
            count, wrong = self.tries.pop(0)
            rest = bytearray(self.data[offset : offset + self.asked[-1][1]])
            for at in wrong:
                rest[at] ^= 1
            rest = rest[:count]

            if fill(targets, taking(rest), on_progress) == self.asked[-1][1]:
                return


def targets(buffer):
    view = memoryview(buffer)
    return [view[begin:end] for begin, end in pairwise(CUTS)]


@pytest.mark.parametrize(
    "tries",
    [
        [(SIZE, [])],
        [(BLOCK_BYTES, [3]), (SIZE, [])],
        [(BLOCK_BYTES + 1, [3]), (BLOCK_BYTES, [3]), (SIZE, [])],
        [(0, []), (SIZE, [])],
    ],
)
def test_a_try_that_was_given_up_does_not_count(data, entry, tries):
    place, buffer = Trying(data, *tries), bytearray(SIZE)
    read_verified(place, entry, 0, targets(buffer))
    assert buffer == data
    assert place.asked == [(0, SIZE)]


@pytest.mark.parametrize(
    "tries",
    [
        [(BLOCK_BYTES, []), (SIZE, [3, SIZE - 1])],
        [(SIZE, [3, BLOCK_BYTES - 1, SIZE - 1])],
    ],
)
def test_blocks_that_differ_are_asked_for_again(data, entry, tries):
    place, buffer = Trying(data, *tries, (BLOCK_BYTES, []), (7, [])), bytearray(SIZE)
    read_verified(place, entry, 0, targets(buffer))
    assert buffer == data
    assert place.asked == [(0, SIZE), (0, BLOCK_BYTES), (2 * BLOCK_BYTES, 7)]


def test_a_block_that_keeps_differing_is_damage(data, entry):
    place = Trying(data, (SIZE, [BLOCK_BYTES]), (BLOCK_BYTES, [0]), (BLOCK_BYTES, [0]))
    with pytest.raises(CheckpointCorruptError, match="file"):
        read_verified(place, entry, 0, targets(bytearray(SIZE)))


def test_a_place_that_tells_nothing_is_compared_in_the_end(data, entry):
    class Silent(Trying):
        def read_into(self, entry, offset, targets, on_progress=int):
            del on_progress
            super().read_into(entry, offset, targets)

    place, buffer = Silent(data, (SIZE, [5]), (BLOCK_BYTES, [])), bytearray(SIZE)
    read_verified(place, entry, 0, targets(buffer))
    assert buffer == data


def test_what_is_told_of_is_there(data):
    """However the bytes come."""
    buffer, seen = bytearray(SIZE), []

    def on_progress(count):
        seen.append(count)
        assert buffer[:count] == data[:count]

    assert fill(targets(buffer), taking(bytearray(data), 1_000_003), on_progress) == SIZE
    assert seen == [0, BLOCK_BYTES, 2 * BLOCK_BYTES]
