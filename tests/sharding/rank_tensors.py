"""DTensors of any rank of any mesh, in one process: torch's fake process group."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.distributed.device_mesh import DeviceMesh

    Cuts = Callable[[str, torch.Tensor], Sequence[int | None]]
    """Name and whole tensor -> the dimension that each dimension of the mesh cuts."""


@contextlib.contextmanager
def as_rank(rank: int, mesh_shape: Sequence[int]) -> Iterator[DeviceMesh]:
    """This process is one rank of a mesh; nothing that it sends arrives anywhere."""
    count = 1
    for length in mesh_shape:
        count *= length
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        yield init_device_mesh("cpu", tuple(mesh_shape))
    finally:
        dist.destroy_process_group()


def empty_part(
    whole: torch.Tensor, mesh: DeviceMesh, cuts: Sequence[int | None]
) -> tuple[DTensor, torch.Tensor]:
    """This rank's DTensor of other items (-1, True), and the part of `whole` that it should be."""
    placements = [Replicate() if dim is None else Shard(dim) for dim in cuts]
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    part = whole[tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))]
    local = torch.full_like(part, -1, memory_format=torch.contiguous_format)
    made = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return made, part


def empty_parts(
    state: Mapping[str, torch.Tensor], mesh: DeviceMesh, cuts: Cuts
) -> tuple[dict[str, DTensor], dict[str, torch.Tensor]]:
    """As `empty_part`, by name."""
    pairs = {name: empty_part(each, mesh, cuts(name, each)) for name, each in state.items()}
    return {n: a for n, (a, _) in pairs.items()}, {n: b for n, (_, b) in pairs.items()}
