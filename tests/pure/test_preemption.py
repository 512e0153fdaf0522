"""The end of a run: the newest state that can be kept, and nothing is risked for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.preemption import EXIT_S, Situation, judge, rest_s

relaxed = settings(deadline=None, database=None, max_examples=300)
seconds = st.floats(0, 1e4, allow_nan=False)
situations = st.builds(
    Situation,
    left_s=st.floats(-100, 1e4),
    covered=st.booleans(),
    safe=st.booleans(),
    under_way=st.integers(0, 3),
    behind_s=seconds,
    save_s=st.none() | seconds,
    later_s=st.none() | st.just(0.0) | seconds,
)
CALM = Situation(left_s=60, covered=False)


@relaxed
@given(situations)
def test_a_save_under_way_is_never_risked_for_one_that_may_not_end_in_time(at):
    if judge(at) == "save" and at.under_way:
        assert at.save_s is not None
        assert at.behind_s + at.save_s <= rest_s(at.left_s)


@relaxed
@given(situations)
def test_a_later_moment_leaves_time_for_the_save(at):
    if judge(at) == "later":
        assert at.behind_s + (at.save_s or 0) + (at.later_s or 0) <= rest_s(at.left_s)


@relaxed
@given(situations)
def test_nothing_is_done_of_a_state_that_is_saved_or_cannot_be(at):
    word = judge(at)
    assert not at.covered or word == "leave"
    assert at.safe or word in {"later", "leave"}


@relaxed
@given(situations)
def test_when_the_time_is_up_the_run_leaves(at):
    assert judge(replace(at, left_s=min(at.left_s, EXIT_S))) == "leave"


@relaxed
@given(situations)
def test_finishing_first_is_asked_for_once(at):
    """It ends: with the saves done, nothing is under way and they were measured."""
    if judge(at) == "finish":
        assert at.under_way
        assert judge(replace(at, under_way=0)) != "finish"


@relaxed
@given(situations, seconds)
def test_more_time_never_makes_a_run_keep_less(at, more):
    rank = {"leave": 0, "finish": 1, "save": 1, "later": 1}
    assert rank[judge(replace(at, left_s=at.left_s + more))] >= rank[judge(at)]


@pytest.mark.parametrize(
    ("situation", "word"),
    [
        (CALM, "save"),
        (replace(CALM, covered=True), "leave"),
        (replace(CALM, later_s=5.0), "later"),
        (replace(CALM, later_s=5.0, save_s=56.0), "save"),
        (replace(CALM, later_s=None), "later"),
        (replace(CALM, later_s=None, save_s=30.0), "save"),
        (replace(CALM, save_s=600.0), "save"),  # it may not end, and harms nothing
        (replace(CALM, save_s=600.0, under_way=1), "leave"),
        (replace(CALM, save_s=10.0, under_way=1, behind_s=10.0), "save"),
        (replace(CALM, under_way=1), "finish"),
        (replace(CALM, safe=False), "leave"),
        (replace(CALM, safe=False, later_s=None), "later"),
    ],
)
def test_cases(situation, word):
    assert judge(situation) == word
