"""What a copy has to know of a tensor, read from it once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TensorAddress(NamedTuple):
    """One dense tensor, and where its bytes are; true as long as it stays in its place."""

    name: str
    tensor: torch.Tensor
    storage: int
    """Address of the storage that it is a view of."""
    address: int
    size: int
    """Bytes."""
    plain: bool
    """Whether those bytes, in host memory, are its items in order."""


def tensor_address(name: str, tensor: torch.Tensor) -> TensorAddress:
    """Look at a tensor, as `storable` returns it."""
    plain = tensor.is_cpu and tensor.is_contiguous()
    return TensorAddress(
        name,
        tensor,
        tensor.untyped_storage().data_ptr(),
        tensor.data_ptr(),
        tensor.nbytes,
        plain and not tensor.is_conj() and not tensor.is_neg(),
    )
