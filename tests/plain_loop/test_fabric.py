"""`Checkpointer` in a script with Lightning's Fabric, whose wrappers it sees through."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

LOOP = Path(__file__).with_name("fabric_loop.py")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_loop_of_fabric_ends_as_one_that_was_not(
    run_ranks: Any, tmp_path: Path, ranks: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = run_ranks(LOOP, whole, 9, 0, ranks=ranks)
    run_ranks(LOOP, killed, 9, 5, ranks=ranks, code=-signal.SIGKILL)
    found = run_ranks(LOOP, killed, 9, 0, ranks=ranks)
    assert [said[0] for said in found] == ["began 5"] * ranks
    assert [said[1] for said in found] == [said[1] for said in wanted]
    weights = load_file(killed / "checkpoint-9" / "model.safetensors")
    assert "0.weight" in weights  # as the plain module names it
