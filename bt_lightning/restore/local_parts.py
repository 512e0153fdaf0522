"""The part of a tensor that this rank holds: of a DTensor its local tensor, of others all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.sharding.boxes import Box, whole_box
from bt_lightning.sharding.layouts import Layout, Placement

if TYPE_CHECKING:
    import torch


def local_part(name: str, tensor: Any) -> tuple[torch.Tensor, Box]:
    """This rank's tensor, without a gradient, aliased; and its box of the whole one.

    Raises:
        UnsupportedStateError: it is a sum over ranks that is not made yet (`Partial`).
    """
    tensor = tensor.detach()
    if type(tensor).__name__ != "DTensor":
        return tensor, whole_box(tensor.shape)
    mesh = tensor.device_mesh
    cuts = tuple(_placement(name, each) for each in tensor.placements)
    ranks = tuple(mesh.mesh.flatten().tolist())
    layout = Layout(tuple(mesh.mesh.shape), ranks, cuts)
    return tensor.to_local(), layout.box(tuple(tensor.shape), mesh.get_rank())


def _placement(name: str, placement: Any) -> Placement:
    kind = type(placement).__name__
    if kind in {"Shard", "_StridedShard"}:
        return Placement(placement.dim, kind == "_StridedShard")
    if kind == "Replicate":
        return Placement()
    msg = f"{name} has the placement {placement} on its mesh: expected Shard or Replicate"
    raise UnsupportedStateError(msg)
