"""Trainings by a Trainer that are killed at random moments end as if they had not been."""

from __future__ import annotations

import pytest

from tests.fault import killing

pytestmark = pytest.mark.matrix


@pytest.mark.timeout(600)  # a dozen lives of a training, on a machine that may be busy
@pytest.mark.parametrize("adapter", [False, True], ids=["model", "trl-adapter"])
def test_a_killed_trainer_ends_with_the_weights_of_the_one_that_was_not(nursery, tmp_path, adapter):
    """Also with its disk lost, and by SIGTERM."""
    job = {"adapter": adapter, "steps": 20}
    killing.torture(nursery, tmp_path, seed=1, kills=3, victims=VICTIMS, **job)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", [False, True], ids=["model", "trl-adapter"])
@pytest.mark.parametrize("seed", [21, 22])
def test_twenty_kills_lose_nothing(nursery, tmp_path, seed, adapter):
    job = {"adapter": adapter}
    kills = killing.torture(nursery, tmp_path, seed=seed, kills=20, victims=VICTIMS, **job)
    assert kills >= 20


VICTIMS = ("trainer", "worker", "both", "told")
"""What is killed; `told`: the trainer gets SIGTERM."""
