"""Invariant 3 for sharded states: what each rank copies during training is of one step."""

from __future__ import annotations

import pytest
import sharded_acts
import sharded_ranks

pytestmark = pytest.mark.matrix

ROUNDS = sharded_acts.ROUNDS


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saw; all runs are made by the same two processes, whose start takes longer."""
    return sharded_ranks.run(2, sharded_acts.all_ways, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_each_rank_commits_the_bytes_of_the_save(ranks, way):
    """The copy begins when the next step wants to update, after its forward and backward."""
    for rank in ranks:
        equal, errors = rank[way]
        assert equal == [True] * ROUNDS
        assert not errors


def test_without_the_guard_the_versions_of_dtensors_tell(ranks):
    """Those of their local tensors do not move."""
    for rank in ranks:
        equal, errors = rank["unguarded"]
        assert not equal
        assert errors == ["TornSnapshotError"] * ROUNDS


def test_without_guard_and_versions_the_bytes_are_of_another_step(ranks):
    """So the test above would find a copy that does not wait."""
    for rank in ranks:
        equal, errors = rank["neither"]
        assert equal == [False] * ROUNDS
        assert not errors
