"""Boxes are what torch gives to ranks: DTensors of every rank of a world, made in one process."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

from bt_lightning.sharding.boxes import Box, tiles, whole_box
from bt_lightning.sharding.layouts import Layout, placements_in_boxes
from bt_lightning.sharding.structure import HeldTensor, merge
from bt_lightning.sharding.write_plan import WritePlan
from tests.sharding.fake_ranks import rank_of
from tests.sharding.sharded_checkpoints import part_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

relaxed = settings(deadline=None, database=None, max_examples=40)


def layout_of(tensor: torch.Tensor) -> Layout | None:
    """The layout of a DTensor; None: its ranks have no boxes."""
    mesh = tensor.device_mesh.mesh
    cuts = []
    for each in tensor.placements:
        if isinstance(each, Replicate):
            cuts.append((None, 1))
        elif isinstance(each, Shard | _StridedShard):
            cuts.append((each.dim % tensor.dim(), getattr(each, "split_factor", 1)))
        else:
            return None
    placements = placements_in_boxes(mesh.shape, cuts)
    return placements and Layout(tuple(mesh.shape), tuple(mesh.flatten().tolist()), placements)


@st.composite
def meshes_and_cuts(draw):
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    dims = st.none() | st.integers(0, len(shape) - 1)
    cuts = [draw(dims) for _ in mesh]
    strided = [draw(st.booleans()) for _ in mesh]
    return mesh, shape, cuts, strided


def torch_placements(mesh, cuts, strided):
    """Of a strided one the factor that FSDP2 gives it: how often others have cut there."""
    found = []
    for index, dim in enumerate(cuts):
        later = zip(mesh[index + 1 :], cuts[index + 1 :], strict=True)
        factor = math.prod(length for length, other in later if other == dim)
        if dim is None:
            found.append(Replicate())
        elif strided[index] and factor > 1:
            found.append(_StridedShard(dim, split_factor=factor))
        else:
            found.append(Shard(dim))
    return found


@relaxed
@given(meshes_and_cuts())
def test_a_rank_has_the_box_that_torch_gives_it(drawn):
    """The content, and what torch itself says of its place."""
    mesh_shape, shape, cuts, strided = drawn
    placements = torch_placements(mesh_shape, cuts, strided)
    for dim, _ in enumerate(shape):
        if any(isinstance(each, _StridedShard) and each.dim == dim for each in placements):
            count = [n for n, cut in zip(mesh_shape, cuts, strict=True) if cut == dim]
            assume(shape[dim] % math.prod(count) == 0)
    whole = torch.arange(math.prod(shape)).reshape(shape)
    world_size = math.prod(mesh_shape)
    boxes = []
    for rank in range(world_size):
        with rank_of(world_size, rank):
            mesh = init_device_mesh("cpu", mesh_shape)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            layout = layout_of(tensor)
            box = layout.box(shape, rank)
            assert torch.equal(tensor.to_local(), part_of(whole, box))
            sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
            assert box.sizes == tuple(sizes)
            assert not box.items or box.offsets == tuple(offsets)
            boxes.append(box)
    assert tiles(shape, {*boxes})
    holders = layout.holders(shape)
    assert {box for box in boxes if box.items} == holders.keys()
    assert all(boxes[rank] == box for box, ranks in holders.items() for rank in ranks)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), Shard(0))])
def test_boxes_of_an_8_by_8_mesh(placements):
    for rank in range(0, 64, 7):
        with rank_of(64, rank):
            mesh = init_device_mesh("cpu", (8, 8))
            for shape in ((100, 64), (7, 3), (1, 5), (33, 17)):
                whole = torch.arange(math.prod(shape)).reshape(shape)
                tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                box = layout_of(tensor).box(shape, rank)
                assert torch.equal(tensor.to_local(), part_of(whole, box))


def models_parts(kind: str, rank: int) -> tuple[dict[str, HeldTensor], dict[str, torch.Tensor]]:
    """What a rank of 8 holds of a small model: as the plan sees it, and its local tensors."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 9), torch.nn.LayerNorm(9), torch.nn.Linear(9, 4), torch.nn.Linear(1, 1)
    )
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replicate", "shard", "model"))
    data: DeviceMesh = mesh["shard"]
    if kind != "fsdp":
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        if kind == "sequence":
            plan["1"] = SequenceParallel()
        parallelize_module(net, mesh["model"], plan, src_data_rank=None)
    if kind in {"hybrid", "fsdp"}:
        data = mesh["replicate", "shard"]
    fully_shard(net, mesh=data)
    held, local = {}, {}
    for name, each in net.named_parameters():
        held[name] = HeldTensor("F32", tuple(each.shape), layout_of(each))
        local[name] = each.to_local().detach().clone()
    return held, local


@pytest.mark.parametrize("kind", ["fsdp", "tensor", "sequence", "hybrid"])
def test_parts_of_fsdp2_and_tensor_parallel_models_make_the_whole(kind):
    """Uneven parts too, of which torch's own bookkeeping has another opinion than FSDP2."""
    held, local = zip(*(_on_rank(kind, rank) for rank in range(8)), strict=True)
    tables = [dict(pairs) for pairs in dict.fromkeys(tuple(one.items()) for one in held)]
    assert len(tables) == {"fsdp": 2, "hybrid": 2}.get(kind, 4)  # one on each mesh for each twin
    plan = WritePlan(merge(tables, [tables.index(one) for one in held]))
    torch.manual_seed(0)
    whole = dict(
        torch.nn.Sequential(
            torch.nn.Linear(5, 9),
            torch.nn.LayerNorm(9),
            torch.nn.Linear(9, 4),
            torch.nn.Linear(1, 1),
        ).named_parameters()
    )
    for rank in range(8):
        for name, each in held[rank].items():
            box = (
                whole_box(each.shape) if each.layout is None else each.layout.box(each.shape, rank)
            )
            assert torch.equal(local[rank][name], part_of(whole[name], box).detach()), name
    filled = {name: torch.zeros_like(each, dtype=torch.int) for name, each in whole.items()}
    for rank in range(8):
        for name, box in plan.boxes_of(rank).items():
            part_of(filled[name], box).add_(1)
    assert all(bool((each == 1).all()) for each in filled.values())


def _on_rank(kind: str, rank: int) -> tuple[dict[str, HeldTensor], dict[str, torch.Tensor]]:
    with rank_of(8, rank):
        return models_parts(kind, rank)


@pytest.mark.parametrize(
    ("mesh_shape", "cuts"),
    [
        ((2, 2), [(0, 4), (0, 1)]),
        ((2, 2), [(0, 1), (0, 2)]),
        ((2, 3), [(0, 2), (0, 1)]),
        ((2, 2, 2), [(0, 8), (0, 2), (0, 1)]),
        ((2, 2), [(0, 2), (1, 1)]),
    ],
)
def test_placements_that_give_no_boxes_are_known(mesh_shape, cuts):
    """Rows 0 and 2, say, of four: a file could name no one place for them."""
    assert placements_in_boxes(mesh_shape, cuts) is None
    world_size, found = math.prod(mesh_shape), []
    for rank in range(world_size):
        with rank_of(world_size, rank):
            mesh = init_device_mesh("cpu", mesh_shape)
            placements = [
                _StridedShard(dim, split_factor=factor) if factor > 1 else Shard(dim)
                for dim, factor in cuts
            ]
            whole = torch.arange(24 * 24).reshape(24, 24)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            found.append(tensor.to_local())
            assert layout_of(tensor) is None
    rows = [sorted({*(part // 24).flatten().tolist()}) for part in found]
    assert any(one != list(range(one[0], one[-1] + 1)) for one in rows)


def test_partial_sums_have_no_box():
    with rank_of(2, 0):
        mesh = init_device_mesh("cpu", (2,))
        tensor = torch.distributed.tensor.DTensor.from_local(torch.ones(2), mesh, [Partial()])
        assert layout_of(tensor) is None


def test_a_size_tells_uneven_strided_parts_that_are_no_boxes():
    """Where torch's two opinions differ they differ in the size of some rank's part."""
    for rows, data, model in itertools.product(range(1, 30), range(2, 5), range(2, 5)):
        layout = Layout(
            (data, model),
            tuple(range(data * model)),
            placements_in_boxes((data, model), [(0, model), (0, 1)]),
        )
        whole = torch.arange(rows)
        differ, sizes_differ = False, False
        for rank in range(data * model):
            strided = _parts(_parts_in(whole, model, data)[rank // model], model)[rank % model]
            box = layout.box((rows,), rank)
            differ |= not torch.equal(strided, part_of(whole, box))
            sizes_differ |= strided.shape != box.sizes
        assert differ == sizes_differ


def _parts(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    found = list(torch.chunk(tensor, count)) if len(tensor) else []
    return found + [tensor[:0]] * (count - len(found))


def _parts_in(tensor: torch.Tensor, factor: int, count: int) -> list[torch.Tensor]:
    """As torch splits by a `_StridedShard`."""
    pieces = [_parts(piece, count) for piece in _parts(tensor, factor)]
    return [torch.cat([piece[index] for piece in pieces]) for index in range(count)]


def test_a_tensor_without_dimensions_is_one_box():
    layout = Layout((2,), (0, 1), placements_in_boxes((2,), [(None, 1)]))
    assert layout.holders(()) == {Box((), ()): (0, 1)}
