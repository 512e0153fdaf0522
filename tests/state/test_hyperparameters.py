"""Hyperparameters of a checkpoint are read without its tensors, unless they have some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.restore.load_checkpoint import load_hyperparameters
from bt_lightning.store.transfer.files_reader import DirectoryReader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"width": 3, "names": ["a", "b"], "inner": {"rate": 0.1, "none": None}},
        {"mean": torch.tensor([0.5, 0.25]), "width": 3},
    ],
)
def test_hyperparameters_come_back(tmp_path: Path, given: dict[str, Any]) -> None:
    state = {"state_dict": {"w": torch.ones(4)}, "global_step": 1, "hyper_parameters": given}
    BTCheckpointIO().save_checkpoint(state, tmp_path / "c")
    if "mean" not in given:
        weights = tmp_path / "c" / "model.safetensors"
        weights.write_bytes(bytes(weights.stat().st_size))
    with DirectoryReader(tmp_path / "c") as reader:
        found = load_hyperparameters(reader)
    assert found.keys() == given.keys()
    assert all(torch.equal(torch.as_tensor(v), given[k]) for k, v in found.items() if k == "mean")
    assert {k: v for k, v in found.items() if k != "mean"} == {
        k: v for k, v in given.items() if k != "mean"
    }


def test_a_checkpoint_without_hyperparameters_has_none(tmp_path: Path) -> None:
    BTCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(4)}}, tmp_path / "c")
    with DirectoryReader(tmp_path / "c") as reader:
        assert load_hyperparameters(reader) == {}
