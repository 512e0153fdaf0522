"""More connections where they carry more, fewer where the server asks for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.store.bandwidth_limit import Bandwidth
from bt_lightning.store.s3.concurrency import Concurrency

MIB = 1024 * 1024


def simulate(rate_of, seconds=20.0, part=32 * MIB):
    """Pieces of 1 MiB over a link that carries `rate_of(width)` MiB a second; the width it ends at.

    What the systems at both ends buffer is taken at once.
    """
    pace, now, left = Concurrency(part), 0.0, 0
    while now < seconds:
        if left < pace.width:
            left += 1
            for _ in range(8):  # a connection that begins
                pace.sent(MIB, now)
        pace.sent(MIB, now)
        now += 1 / rate_of(pace.width)
    return pace.width


def test_a_link_that_one_connection_does_not_fill_gets_more_of_them():
    assert simulate(lambda width: 50.0 * width) == 16


def test_they_come_long_before_the_first_part_is_sent():
    assert simulate(lambda width: 100.0 * width, seconds=0.25, part=64 * MIB) == 16


def test_a_slow_link_has_no_more_under_way_than_it_carries_in_ten_seconds():
    assert simulate(lambda width: 5.0) == 4
    assert simulate(lambda width: 20.0, seconds=60.0) <= 7


def test_a_machine_that_is_busy_with_four_gets_no_more():
    assert simulate(lambda width: 3000.0) == 4


def test_a_server_that_asks_for_less_gets_half_once_for_one_moment():
    pace = Concurrency(MIB, start=16)
    for _ in range(16):  # all that were under way are told the same
        pace.slow_down(began=1.0, now=2.0)
    assert pace.width == 8
    pace.slow_down(began=3.0, now=4.0)
    assert pace.width == 4
    for moment in range(5, 20):
        pace.slow_down(began=float(moment), now=moment + 0.5)
    assert pace.width == 1


def test_a_server_that_asked_for_less_gets_no_more_for_the_asking():
    pace = Concurrency(MIB)
    pace.slow_down(began=0.0, now=0.1)
    assert not any(pace.sent(MIB, moment / 100) for moment in range(100))
    assert pace.width == 2


def test_after_a_long_calm_it_tries_more_again():
    pace = Concurrency(MIB, start=8)
    pace.slow_down(began=0.0, now=1.0)

    def finish(parts):
        for _ in range(parts):
            pace.finished()
        return pace.width

    assert finish(31) == 4
    assert finish(1) == 5
    assert finish(3200) == 16


def test_a_cap_lets_through_as_many_bytes_a_second_as_it_says():
    cap = Bandwidth(100.0 * MIB)
    assert cap.take(20 * MIB, now=0.0) == (20 * MIB, 0.0)
    assert cap.take(20 * MIB, now=0.0) == (20 * MIB, pytest.approx(0.2))
    assert cap.take(100, now=10.0) == (100, 0.0), "time that passed unused is not saved up"


@given(
    st.floats(2e4, 1e9),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4 * MIB)), min_size=1, max_size=60),
)
@settings(deadline=None, database=None)
def test_no_window_carries_more_than_the_cap(rate, asks):
    """`asks` are of any number of connections, each with the time since the one before."""
    cap, now, sent = Bandwidth(rate), 0.0, []
    for since, most in asks:
        now += since
        size, wait = cap.take(most, now)
        assert 0 < size <= most
        sent.append((now + wait, size))
    for first, (begin, _) in enumerate(sent):
        carried = 0
        for moment, size in sent[first:]:
            assert carried <= (moment - begin) * rate * (1 + 1e-6) + 1, "between two moments"
            carried += size


def test_under_a_small_cap_no_connection_is_silent_for_long():
    size, _ = Bandwidth(200_000.0).take(4 * MIB, now=0.0)
    assert size <= 50_000
