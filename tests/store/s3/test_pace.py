"""More connections where they carry more, fewer where the server asks for it."""

from __future__ import annotations

import pytest

from bt_lightning.store.s3.pace import Bandwidth, Pace

MIB = 1024 * 1024


def simulate(pace, rate_of, parts=200):
    """Parts of 32 MiB over a link that carries `rate_of(width)` MiB a second."""
    now = 0.0
    for _ in range(parts):
        now += 32 / rate_of(pace.width)
        pace.finished(32 * MIB, now)
    return pace.width


def test_a_link_that_one_connection_does_not_fill_gets_more_of_them():
    assert simulate(Pace(), lambda width: 50.0 * width) == 16


def test_a_link_that_is_full_keeps_the_connections_that_fill_it():
    assert simulate(Pace(), lambda width: 2000.0) == 4


def test_it_stops_where_more_no_longer_helps():
    assert simulate(Pace(), lambda width: 100.0 * min(width, 8)) == 8


def test_a_server_that_asks_for_less_gets_half_once_for_one_moment():
    pace = Pace(start=16)
    for _ in range(16):  # all that were under way are told the same
        pace.slow_down(began=1.0, now=2.0)
    assert pace.width == 8
    pace.slow_down(began=3.0, now=4.0)
    assert pace.width == 4
    for moment in range(5, 20):
        pace.slow_down(began=float(moment), now=moment + 0.5)
    assert pace.width == 1


def test_after_a_long_calm_it_tries_more_again():
    pace = Pace(start=8)
    pace.slow_down(began=0.0, now=1.0)
    assert simulate(pace, lambda width: 100.0 * width, parts=31) == 4
    assert simulate(pace, lambda width: 100.0 * width, parts=1) == 5
    assert simulate(pace, lambda width: 100.0 * width, parts=3200) == 16


def test_a_cap_lets_through_as_many_bytes_a_second_as_it_says():
    cap = Bandwidth(100.0)
    assert cap.wait(50, now=0.0) == 0.0
    assert cap.wait(50, now=0.0) == 0.5
    assert cap.wait(100, now=0.0) == 1.0
    assert cap.wait(10, now=10.0) == 0.0, "time that passed unused is not saved up"
    assert cap.wait(10, now=10.0) == pytest.approx(0.1)
