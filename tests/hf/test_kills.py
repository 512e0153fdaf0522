"""Trainings by a Trainer that are killed at random moments end as if they had not been."""

from __future__ import annotations

import pytest

from tests.fault import killing


@pytest.mark.timeout(600)  # a dozen lives of a training, on a machine that may be busy
def test_a_killed_trainer_ends_with_the_weights_of_the_one_that_was_not(nursery, tmp_path):
    killing.torture(nursery, tmp_path, seed=1, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [21, 22])
def test_twenty_kills_lose_nothing(nursery, tmp_path, seed):
    assert killing.torture(nursery, tmp_path, seed=seed, kills=20) >= 20
