"""The address, size and contiguity of a tensor, read once for all its copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TensorAddress(NamedTuple):
    """The location of a dense tensor's bytes, valid as long as its storage does not move."""

    name: str
    tensor: torch.Tensor
    storage: int
    """Address of its storage."""
    address: int
    size: int
    """Bytes."""
    plain: bool
    """Whether it is contiguous in host memory, so that its bytes can be copied as they are."""
    whole: torch.Tensor | None = None
    """The DTensor of which it is this rank's part: writes are counted there, not in the part."""


def tensor_address(
    name: str, tensor: torch.Tensor, whole: torch.Tensor | None = None
) -> TensorAddress:
    """The address of a tensor that `storable` returned."""
    plain = tensor.is_cpu and tensor.is_contiguous()
    return TensorAddress(
        name,
        tensor,
        tensor.untyped_storage().data_ptr(),
        tensor.data_ptr(),
        tensor.nbytes,
        plain and not tensor.is_conj() and not tensor.is_neg(),
        whole,
    )
