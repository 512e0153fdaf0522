"""Who writes which box, for the meshes that torch makes of two and four ranks."""

from __future__ import annotations

import pytest

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.sharding.boxes import Box, tiles
from bt_lightning.sharding.layouts import REPLICATED, Layout, Placement
from bt_lightning.sharding.structure import HeldTensor, merge
from bt_lightning.sharding.write_plan import WritePlan

ROWS = Placement(0)
COLUMNS = Placement(1)


def test_boxes_tile_a_tensor_once() -> None:
    left, right = Box((0, 0), (4, 1)), Box((0, 1), (4, 2))
    assert tiles((4, 3), [left, right])
    assert not tiles((4, 3), [left])
    assert not tiles((4, 3), [left, right, Box((1, 1), (1, 1))])
    assert tiles((), [Box((), ())])
    assert not tiles((), [])
    assert tiles((0, 3), [])


def test_each_row_of_an_uneven_tensor_has_one_owner() -> None:
    rows = Layout((4,), (0, 1, 2, 3), (ROWS,))
    plan = WritePlan(merge([{"w": HeldTensor("F32", (5, 3), rows)}], [0, 0, 0, 0]))
    boxes = [plan.boxes_of(rank) for rank in range(4)]
    assert boxes == [
        {"w": Box((0, 0), (2, 3))},
        {"w": Box((2, 0), (2, 3))},
        {"w": Box((4, 0), (1, 3))},
        {},
    ]
    assert plan.sizes == (24, 24, 12, 0)


def test_twins_on_other_sub_meshes_are_written_once() -> None:
    """Of a 2 x 2 mesh a parameter that FSDP alone shards lies on two meshes of two ranks."""
    tables = [
        {"norm": HeldTensor("F32", (8,), Layout((2,), ranks, (ROWS,))),
         "w": HeldTensor("F32", (8, 8), Layout((2, 2), (0, 1, 2, 3), (ROWS, COLUMNS)))}
        for ranks in ((0, 2), (1, 3))
    ]  # fmt: skip
    plan = WritePlan(merge(tables, [0, 1, 0, 1]))
    written = [name for rank in range(4) for name in plan.boxes_of(rank)]
    assert sorted(written) == ["norm", "norm", "w", "w", "w", "w"]
    assert plan.owner("norm", Box((0,), (4,))) == 0
    assert plan.owner("norm", Box((4,), (4,))) == 2
    assert sum(plan.sizes) == 4 * (8 + 64)


def test_replicated_tensors_are_shared_out() -> None:
    shapes = {"a": (100,), "b": (60,), "c": (40,), "d": (1,)}
    table = {name: HeldTensor("F32", (2**20, *shape), None) for name, shape in shapes.items()}
    plan = WritePlan(merge([table], [0, 0]))
    assert plan.sizes == (404 * 2**20, 400 * 2**20)
    assert [*plan.boxes_of(0)] == ["a", "d"]


def test_ranks_that_plan_otherwise_have_another_fingerprint() -> None:
    """Parts of two plans would leave holes, and overlap elsewhere."""
    table = {name: HeldTensor("F32", (2**20, 8), None) for name in "ab"}
    plan, other = (WritePlan(merge([table], [0, 0])) for _ in range(2))
    assert plan.fingerprint == WritePlan(merge([table], [0, 0])).fingerprint
    other.__dict__["_decided"] = ({"a": 1, "b": 0}, other.sizes)
    assert plan.replicas == {"a": 0, "b": 1}
    assert plan.fingerprint != other.fingerprint
    assert plan.fingerprint != WritePlan(merge([table], [0, 0, 0])).fingerprint


def test_small_plain_tensors_are_those_of_one_rank() -> None:
    """Statistics of batches differ between the ranks: a mean and a variance belong together."""
    table = {name: HeldTensor("F32", (100,), None) for name in "abc"}
    plan = WritePlan(merge([table, {}], [1, 0, 0, 0]))
    assert plan.sizes == (0, 1200, 0, 0)
    assert plan.writers == (1,)


def test_replicas_of_shards_are_shared_out() -> None:
    """HSDP: two rows of the mesh hold the same shards."""
    layout = Layout((2, 2), (0, 1, 2, 3), (REPLICATED, ROWS))
    table = {name: HeldTensor("BF16", (4, 8), layout) for name in "abcd"}
    plan = WritePlan(merge([table], [0] * 4))
    assert plan.sizes == (64, 64, 64, 64)


def test_ranks_that_hold_other_tensors_are_named() -> None:
    tables = [{"w": HeldTensor("F32", (4,), None)}, {"w": HeldTensor("F32", (5,), None)}]
    with pytest.raises(UnsupportedStateError, match=r"w is F32 \[5\] on rank 1 and F32 \[4\]"):
        merge(tables, [0, 1])


def test_a_rank_of_a_mesh_that_lacks_a_tensor_is_named() -> None:
    """Its box would be planned for a rank that cannot write it."""
    half = HeldTensor("F32", (4,), Layout((2,), (0, 1), (ROWS,)))
    with pytest.raises(UnsupportedStateError, match="a mesh of 2 ranks, and rank 1 lacks it"):
        merge([{"w": half}, {}], [0, 1])
    with pytest.raises(UnsupportedStateError, match="rank 2 holds it, which is none of them"):
        merge([{"w": half}], [0, 0, 0])
    empty = HeldTensor("F32", (1,), Layout((2,), (0, 1), (ROWS,)))
    assert WritePlan(merge([{"w": empty}, {}], [0, 1])).writers == (0,)


def test_parts_that_overlap_are_an_error() -> None:
    half = HeldTensor("F32", (4,), Layout((2,), (0, 1), (ROWS,)))
    with pytest.raises(UnsupportedStateError, match="the parts of w"):
        merge([{"w": half}, {"w": HeldTensor("F32", (4,), None)}], [0, 0, 1])
