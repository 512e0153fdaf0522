"""What holds for every plan: each item is written once, by a rank that has it, in fair shares."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.sharding.boxes import Box, tiles
from bt_lightning.sharding.layouts import Layout, Placement
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import HeldTensor, merge
from bt_lightning.sharding.write_plan import SMALL_BYTES, WritePlan

relaxed = settings(deadline=None, database=None, max_examples=200)


@st.composite
def boxes_in_a_grid(draw):
    """A few boxes, which often tile the grid."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    cuts = [sorted(draw(st.sets(st.integers(0, length), max_size=2))) for length in shape]
    sides = [
        list(itertools.pairwise([0, *cut, length])) for cut, length in zip(cuts, shape, strict=True)
    ]
    boxes = [
        Box(tuple(a for a, _ in edges), tuple(b - a for a, b in edges))
        for edges in itertools.product(*sides)
    ]
    kept = draw(st.lists(st.sampled_from(boxes), max_size=6)) if draw(st.booleans()) else boxes
    return shape, kept


def cells(box: Box) -> list[tuple[int, ...]]:
    edges = zip(box.offsets, box.ends, strict=True)
    return list(itertools.product(*(range(*edge) for edge in edges)))


@relaxed
@given(boxes_in_a_grid())
def test_boxes_tile_a_tensor_if_each_cell_is_in_one(drawn):
    shape, boxes = drawn
    count = [cell for box in boxes for cell in cells(box)]
    once = sorted(count) == sorted(itertools.product(*map(range, shape)))
    assert tiles(shape, boxes) == once


PLAIN, WHOLE_MESH, ROW_MESHES, COLUMN_MESHES = range(4)


@st.composite
def tables_of_ranks(draw):
    """What each rank of a 2-D mesh holds: plain tensors, and some on all of it or on a sub-mesh."""
    mesh = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    world_size = math.prod(mesh)
    tables = [{} for _ in range(world_size)]
    for number in range(draw(st.integers(0, 6))):
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 512]), max_size=3)))
        kind = draw(st.sampled_from([PLAIN, WHOLE_MESH, ROW_MESHES, COLUMN_MESHES]))
        dims = st.none() | st.integers(0, len(shape) - 1) if shape else st.none()
        cuts = [Placement(draw(dims)) for _ in range(2 if kind == WHOLE_MESH else 1)]
        dtype = draw(st.sampled_from(["BF16", "F32", "I64"]))
        for rank in range(world_size):
            row, column = divmod(rank, mesh[1])
            if kind == PLAIN:
                layout = None
            elif kind == WHOLE_MESH:
                layout = Layout(mesh, tuple(range(world_size)), tuple(cuts))
            elif kind == ROW_MESHES:
                ranks = range(row * mesh[1], (row + 1) * mesh[1])
                layout = Layout((mesh[1],), tuple(ranks), tuple(cuts))
            else:
                ranks = range(column, world_size, mesh[1])
                layout = Layout((mesh[0],), tuple(ranks), tuple(cuts))
            tables[rank][f"t{number}"] = HeldTensor(dtype, shape, layout)
    return tables


def different(tables):
    """The different tables, and for each rank which is its own."""
    found = []
    for table in tables:
        if table not in found:
            found.append(table)
    return found, [found.index(table) for table in tables]


@relaxed
@given(tables_of_ranks())
def test_each_item_is_written_once_by_a_rank_that_holds_it(tables):
    found, of_rank = different(tables)
    plan = WritePlan(merge(found, of_rank))
    index = ShardIndex.of_plan(plan)
    written = {name: [] for name in plan.structure.tensors}
    for rank, table in enumerate(tables):
        boxes = plan.boxes_of(rank)
        for name, box in boxes.items():
            held = table[name]
            assert box == (
                held.layout.box(held.shape, rank)
                if held.layout
                else Box((0,) * len(held.shape), held.shape)
            )
            assert (index.files[rank], box) in index.boxes(name)
            assert plan.owner(name, box) == rank
            written[name].append(box)
        size = {"BF16": 2, "F32": 4, "I64": 8}
        assert plan.sizes[rank] == sum(b.items * size[table[n].dtype] for n, b in boxes.items())
        assert (rank in plan.writers) == bool(boxes)
    for name, boxes in written.items():
        shape = plan.structure.tensors[name].shape
        assert tiles(shape, boxes)
        assert len(index.boxes(name)) == len(boxes)
    assert ShardIndex.from_bytes(index.to_bytes(), "here") == index


@relaxed
@given(tables_of_ranks(), st.randoms(use_true_random=False))
def test_the_plan_is_the_same_in_every_order_of_the_tables(tables, random):
    """Each rank computes it from what it got, in the order in which it came."""
    found, of_rank = different(tables)
    first = merge(found, of_rank)
    order = list(range(len(found)))
    random.shuffle(order)
    shuffled = [dict(random.sample([*found[at].items()], len(found[at]))) for at in order]
    again = merge(shuffled, [order.index(index) for index in of_rank])
    assert again == first
    assert [*again.tensors] == [*first.tensors]
    assert again.fingerprint == first.fingerprint
    assert WritePlan(again).fingerprint == WritePlan(first).fingerprint
    assert ShardIndex.of_plan(WritePlan(again)) == ShardIndex.of_plan(WritePlan(first))


@relaxed
@given(tables_of_ranks())
def test_no_other_replica_would_have_had_a_smaller_share(tables):
    """The fullest rank got its last box when every other choice had a rank as full, but for it."""
    plan = WritePlan(merge(*different(tables)))
    size = {"BF16": 2, "F32": 4, "I64": 8}
    fullest = max(range(len(tables)), key=lambda rank: plan.sizes[rank])
    last = []
    for name, box in plan.boxes_of(fullest).items():
        tensor = plan.structure.tensors[name]
        holders = plan.structure.holders(name)
        small = math.prod(tensor.shape) * size[tensor.dtype] < SMALL_BYTES
        if len(holders[box]) > 1 and not (small and any(x.is_plain for x in tensor.layouts)):
            last.append((max(b.items for b in holders) * size[tensor.dtype], name))
    if not last:
        return
    largest, name = min(last)
    shared = [ranks for ranks in plan.structure.holders(name).values() if len(ranks) > 1]
    for replica in range(max(map(len, shared))):
        team = [ranks[replica % len(ranks)] for ranks in shared]
        assert plan.sizes[fullest] <= max(plan.sizes[rank] for rank in team) + largest


def test_bytes_of_the_ranks_of_hybrid_and_nested_meshes_are_equal() -> None:
    """HSDP, and FSDP2 over tensor parallel with norms that the latter does not cut."""
    hybrid = Layout((2, 4), tuple(range(8)), (Placement(), Placement(0)))
    nested = Layout((4, 2), tuple(range(8)), (Placement(0), Placement(1)))
    norms = Layout((4, 2), tuple(range(8)), (Placement(0), Placement()))
    for layouts in ((hybrid, hybrid), (nested, norms)):
        table = {}
        for layer in range(24):
            for part in ("w", "exp_avg", "exp_avg_sq"):
                table[f"{layer}.{part}"] = HeldTensor("F32", (512, 256), layouts[0])
                table[f"{layer}.norm.{part}"] = HeldTensor("F32", (256,), layouts[1])
            table[f"{layer}.step"] = HeldTensor("F32", (), None)
        sizes = WritePlan(merge([table], [0] * 8)).sizes
        assert max(sizes) - min(sizes) <= 256 * 4
