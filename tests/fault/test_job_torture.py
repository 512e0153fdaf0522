"""A job of `bt-lightning run`, whose script knows nothing of us, survives whatever befalls it."""

from __future__ import annotations

import pytest

from tests.fault.jobs import EVENTS, torture

pytestmark = pytest.mark.matrix


@pytest.mark.timeout(560)
@pytest.mark.parametrize(
    ("processes", "preemptions"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 1)]
)
def test_a_job_that_is_broken_off_again_and_again_ends_as_if_it_had_not_been(
    tmp_path, processes, preemptions
):
    befell = torture(tmp_path, processes, seed=processes, preemptions=preemptions)
    assert sum(befell[event] for event in EVENTS) >= preemptions


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [31, 32, 33, 34])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_hundred_preemptions_of_jobs_lose_nothing(tmp_path, processes, seed):
    befell = torture(tmp_path, processes, seed, preemptions=25)
    assert sum(befell[event] for event in EVENTS) >= 25
