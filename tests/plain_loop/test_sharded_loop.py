"""Loops whose model lies on all ranks (FSDP2), in plain torch and with Lightning's Fabric."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

LOOP = Path(__file__).with_name("sharded_loop.py")
ODDITIES = Path(__file__).with_name("sharded_oddities.py")


def words(root: Path, kind: str, **more: Any) -> str:
    return json.dumps({"root": str(root), "kind": kind, "seed": 1, "steps": 5, **more})


@pytest.mark.parametrize("kind", ["fsdp", "fabric", "fabric.save"])
def test_a_killed_loop_goes_on_to_the_state_of_the_uninterrupted_one(
    run_ranks: Any, tmp_path: Path, kind: str
) -> None:
    whole = run_ranks(LOOP, words(tmp_path / "whole", kind), ranks=2)
    killed = words(tmp_path / "ck", kind, kill_at=3)
    run_ranks(LOOP, killed, ranks=2, code=-signal.SIGKILL)
    found = list_committed((tmp_path / "ck").resolve(), foreign=False)[0]
    assert [one.manifest.step for one in found] == [3, 2]
    again = run_ranks(LOOP, words(tmp_path / "ck", kind, seed=9), ranks=2)
    for rank in range(2):
        assert again[rank][0].split()[:2] == ["began", "3"]
        assert again[rank][-1] == whole[rank][-1]
    elsewhere = tmp_path / "ck-elsewhere"
    assert (elsewhere / "meta.pt").is_file() == (kind == "fabric.save")


def test_a_loop_goes_on_on_one_rank_and_back_on_three(run_ranks: Any, tmp_path: Path) -> None:
    """From parts to one file, and from that to parts."""
    before = run_ranks(LOOP, words(tmp_path, "fsdp"), ranks=2)[0]
    for steps, ranks, kind in ((7, 1, "one"), (9, 3, "fsdp")):
        after = run_ranks(LOOP, words(tmp_path, kind, steps=steps), ranks=ranks)[0]
        assert after[0].split()[1:] == [before[-1].split()[1], before[-1].split()[3]]
        before = after


def test_a_save_that_fails_on_one_rank_is_counted_by_all(run_ranks: Any, tmp_path: Path) -> None:
    """Else parts of two steps would meet from then on."""
    first, second = run_ranks(ODDITIES, "fails_once", tmp_path, ranks=2)
    assert len(first) == 1
    assert first[0].startswith("2 PartsMissingError")
    assert "rank 1 on " in first[0]
    assert "has no part of it: OSError: the reader is gone" in first[0]
    assert second == ["2 OSError the reader is gone"]
    found = list_committed(tmp_path.resolve(), foreign=False)[0]
    assert [one.manifest.step for one in found] == [3, 1]
    for one in found:
        verify(tmp_path / one.manifest.checkpoint_id)


def test_a_save_that_fails_before_it_has_a_state_is_counted_by_all(
    run_ranks: Any, tmp_path: Path
) -> None:
    """Else no later save of the run would be committed: its parts would be of two steps."""
    first, second = run_ranks(ODDITIES, "fails_before", tmp_path, ranks=2)
    assert (first, second) == (["2 ValueError"], [])
    found = list_committed(tmp_path.resolve(), foreign=False)[0]
    assert [one.manifest.step for one in found] == [3, 1]


def test_a_model_that_is_sharded_behind_the_load_is_refused_on_every_rank(
    run_ranks: Any, tmp_path: Path
) -> None:
    for said in run_ranks(ODDITIES, "sharded_late", tmp_path, ranks=2):
        assert said == [
            "the model was sharded behind load_latest, or behind the first save: shard it before"
        ]
    assert not list_committed(tmp_path.resolve(), foreign=False)[0]


def test_values_may_have_the_names_of_a_checkpoint_s_own_entries(
    run_ranks: Any, tmp_path: Path
) -> None:
    for said in run_ranks(ODDITIES, "own_names", tmp_path, ranks=2):
        assert said[-1] == "True True"


def test_a_load_waits_until_the_save_before_has_its_bytes(run_ranks: Any, tmp_path: Path) -> None:
    """Else the save would have parts of what was loaded."""
    for said in run_ranks(ODDITIES, "loads_beside_a_copy", tmp_path, ranks=2):
        assert said[-1] == "True True"
