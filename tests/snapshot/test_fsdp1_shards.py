"""Saves of FSDP1: torch's sharded state, each rank its part."""

from __future__ import annotations

import pytest
import sharded_acts
import sharded_ranks

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return sharded_ranks.run(2, sharded_acts.fsdp1_saves, tmp_path_factory.mktemp("fsdp1"))


@pytest.mark.parametrize("mesh", [False, True], ids=["ShardedTensor", "DTensor"])
def test_a_training_goes_on_bit_equal_also_by_way_of_fsdp2(tmp_path, mesh):
    """Without a step to make the state of the optimizer."""
    for rank in sharded_ranks.run(2, sharded_acts.fsdp1_goes_on, tmp_path, mesh):
        assert rank["equal"]
        assert rank["names"] > 20
        assert rank.get("from fsdp2", []) == []


@pytest.mark.parametrize("mesh", [False, True], ids=["ShardedTensor", "DTensor"])
def test_each_rank_saves_its_part_of_what_a_single_process_has(ranks, mesh):
    """The committed bytes of the fifth save are those of its step, by torch's names."""
    for rank in ranks:
        seen = rank[mesh]
        assert seen["names"]
        assert seen["before"] == {}, "no step is taken to make a state"
        assert seen["groups"] == ["scale", "embed.weight"]
        assert ("DTensor" if mesh else "ShardedTensor") in seen["kinds"]
        assert len(seen["close"]) >= 5
        assert [name for name, is_close in seen["close"] if not is_close] == []


def test_extra_states_go_back_to_their_modules(tmp_path):
    found = sharded_ranks.run(2, sharded_acts.fsdp1_extra_states, tmp_path)
    assert found == [(3, [1.0, 1.0])] * 2
