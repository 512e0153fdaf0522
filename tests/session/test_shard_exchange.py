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


@pytest.mark.parametrize("alone", [0, 1])
def test_a_rank_whose_structure_changes_alone_hears_it_at_once(ranks, alone):
    """Nobody waits for those that save what they have agreed on, and later changes are agreed."""
    words = ranks[alone][f"rank {alone} alone"]
    assert words.startswith("RanksApartError: the sharded state has other tensors")
    assert f"but not on rank {1 - alone}:" in words
    assert ranks[1 - alone][f"rank {alone} alone"] == ""
    for rank in ranks:
        assert rank[f"after {alone} alone"] == ""


def test_what_a_rank_could_not_say_of_a_known_structure_is_not_heard_later(ranks):
    assert ranks[0]["cannot what is known"] == ""
    assert "odd is placed as (P" in ranks[1]["cannot what is known"]
    for rank in ranks:
        assert rank["after that"] == ""


def test_a_rank_that_fails_before_it_has_a_state_is_named_at_once(ranks):
    assert ranks[0]["before"] == (
        "UnsupportedStateError: the sharded state cannot be saved, by rank 1: OSError: the reader"
        " is gone"
    )


def test_states_of_an_optimizer_that_are_one_rank_s_own_are_refused(ranks):
    """Of plain tensors rank 0's would be stored, for all."""
    for rank in ranks:
        assert (
            "optimizer 0 keeps own of up.weight [72, 24] as a plain tensor [36, 24]"
            in (rank["own state"])
        )
