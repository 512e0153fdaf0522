"""How often to save: the formula against brute force, and its limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.optimal_save_interval import (
    LEAST_S,
    MOST_S,
    FailureRecord,
    best_interval,
    daly,
    record_of,
)

relaxed = settings(deadline=None, database=None, max_examples=300)
costs = st.floats(1e-4, 1e3)
times = st.floats(1.0, 1e7)


def slowdown(interval_s, cost_s, mtbf_s):
    """Wall time per useful second, with failures that come at random (Daly 2006, eq. 20)."""
    return mtbf_s * math.expm1((interval_s + cost_s) / mtbf_s) / interval_s


@relaxed
@given(costs, st.floats(10.0, 1e7))
def test_the_formula_is_within_a_thousandth_of_the_best_interval(cost_s, mtbf_s):
    if cost_s > mtbf_s / 50:
        return  # an approximation for costs far below the time between failures
    found = slowdown(daly(cost_s, mtbf_s), cost_s, mtbf_s)
    grid = [math.sqrt(2 * cost_s * mtbf_s) * 1.05**n for n in range(-60, 61)]
    assert found <= 1.001 * min(slowdown(each, cost_s, mtbf_s) for each in grid)


@relaxed
@given(costs, times, st.floats(1e-4, 1.0), st.floats(0, 1e4))
def test_an_interval_keeps_its_limits(cost_s, mtbf_s, overhead, takes_s):
    found = best_interval(cost_s, mtbf_s, overhead, takes_s)
    assert found >= LEAST_S
    assert found >= takes_s
    assert cost_s / found <= overhead * (1 + 1e-9)
    assert found <= max(MOST_S, takes_s, cost_s / overhead)


@relaxed
@given(costs, costs, times)
def test_dearer_saves_are_never_made_more_often(one, other, mtbf_s):
    low, high = sorted((one, other))
    assert best_interval(low, mtbf_s, 0.01, 0) <= best_interval(high, mtbf_s, 0.01, 0) * (1 + 1e-9)


def test_saves_dearer_than_failures_are_rare():
    assert daly(100.0, 10.0) == 10.0


def test_the_prior_gives_way_to_what_is_seen():
    assert FailureRecord().mtbf_s(86400) == 86400
    assert FailureRecord(86400, 0).mtbf_s(86400) == 2 * 86400
    assert FailureRecord(3600 * 24, 23).mtbf_s(86400) == pytest.approx(7200)


def event(kind, at, **facts):
    return {"event": kind, "at": at, **facts}


def test_a_run_that_broke_off_or_ended_by_an_error_failed():
    events = [
        event("began", 0.0),
        event("durable", 50.0),
        event("began", 100.0),  # the one before was killed at 50 or later
        event("ended", 160.0, failed=True),
        event("began", 200.0),
        event("preempted", 230.0),
        event("began", 300.0),
        event("ended", 340.0, failed=False),
    ]
    assert record_of(events) == FailureRecord(50 + 60 + 30 + 40, 2)


def test_without_events_nothing_is_known():
    assert record_of([]) == FailureRecord()
