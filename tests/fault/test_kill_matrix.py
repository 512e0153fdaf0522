"""SIGKILL of the trainer, the worker, or both, at seeded random moments of a run of 40 saves."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.matrix


@pytest.mark.timeout(600)  # a dozen lives of a training, on a machine that may be busy
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(killing, nursery, tmp_path):
    killing.torture(nursery, tmp_path, seed=1, kills=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_two_hundred_kills_lose_nothing(killing, nursery, tmp_path, seed):
    assert killing.torture(nursery, tmp_path, seed=seed, kills=50) >= 50
