"""The checkpoints that other tests read are those that ranks would write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import SHARDS, TREE, rank_file
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import merge
from bt_lightning.sharding.write_plan import WritePlan
from bt_lightning.snapshot.shard_files import PlannedPart, encode_part, lay_out_part
from tests.sharding.fake_ranks import rank_of
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
    own = [{"rank": {"seed": (1,)}}, {"rank": {"t": torch.arange(2)}}]
    manifest = write_sharded(tmp_path, "a/checkpoint-4", state, layout_of, own=own)
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
    trees = [json.loads((final / rank_file(rank)).read_text())["tree"]["rank"] for rank in range(2)]
    assert trees[0] == {"seed": {"$": "tuple", "v": [1]}}
    assert trees[1]["t"]["file"] == "state"
    with safe_open(final / "ranks/00001.safetensors", "pt") as opened:
        assert opened.get_tensor(trees[1]["t"]["name"]).tolist() == [0, 1]
    assert not (final / rank_file(2)).exists()


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).reshape(*tensor.shape, 16)


@pytest.mark.parametrize(
    ("mesh_shape", "matrix", "vector", "layout_of"),
    [
        ((4,), [Shard(0)], [Shard(0)], by_rows(4)),
        ((2, 2), [Replicate(), Shard(0)], [Replicate(), Shard(0)], hybrid(2, 2)),
        ((2, 2), [Shard(0), Shard(1)], [Shard(0), Replicate()], by_rows_and_columns(2, 2)),
    ],
)
def test_these_are_the_bytes_that_ranks_write(tmp_path, mesh_shape, matrix, vector, layout_of):
    """Else tests that read them would not be about checkpoints of a training."""
    state, final = example_state(), tmp_path / "a"
    own = [{"rank": {"seed": (rank,), "t": torch.arange(rank)}} for rank in range(4)]
    write_sharded(tmp_path, "a", state, layout_of, own=own)
    written, tables = {}, []

    def distributed(tensor, mesh):
        placements = {0: None, 1: vector}.get(tensor.dim(), matrix)
        made = (
            tensor
            if placements is None
            else distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        )
        return held.setdefault(tensor.data_ptr(), made) if tensor.numel() else made

    plan = None
    for rank in [*range(4), *range(4)]:  # all tables, then all files
        held = {}
        with rank_of(4, rank):
            mesh = init_device_mesh("cpu", mesh_shape)
            weights = {name: distributed(t, mesh) for name, t in state["state_dict"].items()}
            moments = {
                key: distributed(one, mesh) if isinstance(one, torch.Tensor) else one
                for key, one in state["optimizer_states"][0]["state"]["net.weight"].items()
            }
            optimizer = {**state["optimizer_states"][0], "state": {"net.weight": moments}}
            live = {**state, "state_dict": weights, "optimizer_states": [optimizer]}
            encoded = encode_part({**live, "bt_lightning": own[rank]})
            if len(tables) < 4:
                tables.append(encoded.held.table)
                continue
            plan = plan or WritePlan(merge(tables, [0, 1, 2, 3]))
            snapshot = lay_out_part(encoded, PlannedPart(plan, rank))
            for path, pieces in snapshot.files.items():
                written[path] = b"".join(map(bytes, pieces()))
    names = {str(p.relative_to(final)) for p in final.rglob("*") if p.is_file()}
    assert written.keys() == names - {"bt_manifest.json"}
    del written["trainer.json"]  # it has the empty entry of the package, too
    for path, data in written.items():
        assert data == (final / path).read_bytes(), path


def test_the_same_state_makes_the_same_bytes(tmp_path: Path) -> None:
    one = write_sharded(tmp_path, "a", example_state(), hybrid(2, 2))
    other = write_sharded(tmp_path, "b", example_state(), hybrid(2, 2))
    assert one.files == other.files
