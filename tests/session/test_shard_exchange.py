"""How ranks agree who writes what: once for a structure, alike, and with a deadline."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "snapshot"))
import sharded_acts
import sharded_ranks


@pytest.fixture(scope="module")
def ranks():
    return sharded_ranks.run(2, sharded_acts.exchange_rounds)


def test_ranks_agree_once_for_each_structure(ranks):
    for rank in ranks:
        assert rank["agreements"] == 1, "two saves of one structure"
        assert rank["after another optimizer"] == 2
        assert rank["back again"] == 2, "the plan of the first structure is kept"
        first, second, third, fourth = rank["prints"]
        assert first == second == fourth != third
    assert ranks[0]["prints"] == ranks[1]["prints"]


def test_states_that_do_not_fit_are_refused_on_all_ranks_by_name(ranks):
    for rank in ranks:
        assert "state_dict.odd" in rank["other shapes"]
        assert "rank 0" in rank["other shapes"]
        assert "rank 1" in rank["other shapes"]
        assert rank["other shapes"] == ranks[0]["other shapes"]


@pytest.mark.parametrize("unable", [0, 1])
def test_what_one_rank_cannot_save_is_said_on_all(ranks, unable):
    for rank in ranks:
        assert "odd is placed as (P" in rank[f"rank {unable} cannot"]
    assert f"by rank {unable}: " in ranks[1 - unable][f"rank {unable} cannot"]


def test_a_rank_that_does_not_come_is_named(ranks):
    assert ranks[0]["absent"].startswith("RanksApartError: no word of rank 1 within")
