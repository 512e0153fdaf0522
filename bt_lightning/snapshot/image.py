"""The bytes of a safetensors file, as a header and views of the tensors themselves: no copy.

Source of the format: the safetensors README. Tensors lie in order of falling item size, then name,
so that each begins at a multiple of its item size; the header is padded with spaces so that the
first begins at a multiple of `ALIGNMENT`.
"""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Final

import torch

from bt_lightning.snapshot.dtypes import SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALIGNMENT: Final = 4096
"""Bytes: a page, so that a mapping or a direct read of the tensors needs no bounce buffer."""
_LENGTH_BYTES = 8


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; valid as long as `tensor` lives."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    raw = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(raw).cast("B")


def host_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous CPU tensor of a dtype that safetensors knows, with the content of `tensor`.

    Takes dense tensors of any shape, on any device. Without a copy where `tensor` is one already.
    A dtype that safetensors does not know comes back as uint8 of shape `[*shape, item bytes]`.
    """
    host = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    if host.dtype in SAFETENSORS:
        return host
    shape = [*host.shape, host.element_size()]
    return (
        host.reshape(-1).view(torch.uint8).reshape(shape)
        if host.numel()
        else torch.empty(shape, dtype=torch.uint8)
    )


def file_pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview | bytes]:
    """The pieces of one safetensors file, in order; `tensors` are what `host_tensor` returns."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = text + b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    yield len(padded).to_bytes(_LENGTH_BYTES, "little") + padded
    for _, tensor in ordered:
        yield tensor_bytes(tensor)
