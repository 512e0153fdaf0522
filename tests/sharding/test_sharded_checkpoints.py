"""The checkpoints that other tests read are those that ranks would write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import SHARDS, TREE, rank_file
from bt_lightning.sharding.shard_index import ShardIndex
from tests.sharding.sharded_checkpoints import (
    by_rows,
    by_rows_and_columns,
    hybrid,
    part_of,
    write_sharded,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sharding.sharded_checkpoints import LayoutOf


def example_state() -> dict[str, object]:
    torch.manual_seed(0)
    weight = torch.randn(7, 6)
    weights = {
        "net.weight": weight,
        "net.bias": torch.randn(7, dtype=torch.bfloat16),
        "head.weight": weight,
        "count": torch.tensor(3),
        "none": torch.empty(0, 3),
        "odd": torch.randn(5, dtype=torch.complex128),
    }
    moments = {"step": torch.tensor(4.0), "exp_avg": torch.randn(7, 6), "flag": True}
    return {
        "global_step": 4,
        "epoch": 1,
        "state_dict": weights,
        "optimizer_states": [
            {
                "state": {"net.weight": moments},
                "param_groups": [{"lr": 0.1, "params": ["net.weight"]}],
            }
        ],
        "loops": {"a": (1, 2), "t": torch.arange(3)},
    }


@pytest.mark.parametrize("layout_of", [by_rows(4), hybrid(2, 2), by_rows_and_columns(2, 2)])
def test_each_item_is_in_one_file(tmp_path: Path, layout_of: LayoutOf) -> None:
    state = example_state()
    manifest = write_sharded(tmp_path, "a/checkpoint-4", state, layout_of, own=[{"seed": (1,)}])
    final = tmp_path / "a/checkpoint-4"
    assert verify(final) == manifest
    assert manifest.is_sharded
    assert manifest.step == 4
    index = ShardIndex.from_bytes((final / SHARDS).read_bytes(), "here")
    assert index.facts == manifest.origin["shards"]
    weights = {f"state_dict.{name}": one for name, one in state["state_dict"].items()}
    moments = state["optimizer_states"][0]["state"]["net.weight"]
    weights["optimizer_0.state.net.weight.exp_avg"] = moments["exp_avg"]
    for name, whole in weights.items():
        count = 0
        for file, box in index.boxes(name):
            with safe_open(final / file, "pt") as opened:
                part = opened.get_tensor(index.stored_name(name))
                info = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
            assert info[index.stored_name(name)]["saved_offsets"] == list(box.offsets)
            stored = whole if whole.dtype != torch.complex128 else bytes_of(whole)
            assert torch.equal(part, part_of(stored, box))
            count += part.numel()
        assert count == (whole.numel() if whole.dtype != torch.complex128 else whole.numel() * 16)
    tree = json.loads((final / TREE).read_text())["tree"]
    shared = {"$": "tensor", "file": "shards", "name": "state_dict.net.weight"}
    assert tree["state_dict"]["head.weight"] == tree["state_dict"]["net.weight"] == shared
    assert tree["state_dict"]["odd"]["dtype"] == "complex128"
    assert tree["loops"]["t"]["file"] == "state"
    own = [json.loads((final / rank_file(rank)).read_text())["tree"] for rank in range(4)]
    assert own == [{"seed": {"$": "tuple", "v": [1]}}, {}, {}, {}]


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).reshape(*tensor.shape, 16)


def test_the_same_state_makes_the_same_bytes(tmp_path: Path) -> None:
    one = write_sharded(tmp_path, "a", example_state(), hybrid(2, 2))
    other = write_sharded(tmp_path, "b", example_state(), hybrid(2, 2))
    assert one.files == other.files
