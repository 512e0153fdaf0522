"""Layout of a safetensors file: the header and the offset of each tensor.

Source of the format: the safetensors README. Tensors are sorted by descending item size, so that
each is aligned to it, then by descending size, then by name. So the small trained tensors of an
adapter are adjacent instead of spread between large frozen ones, and most blocks of the file stay
the same between saves. The header is padded with spaces so that the first tensor begins at a
multiple of `ALIGNMENT`.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import torch

from bt_lightning.snapshot.dtypes import SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ALIGNMENT: Final = 4096
"""Bytes: a page, so that the tensors can be mapped or read with O_DIRECT."""
_LENGTH_BYTES = 8
OF_TORCH: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
"""The metadata by which readers know tensors of torch."""


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; valid as long as `tensor` lives."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    raw = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(raw).cast("B")


def storable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor detached, if safetensors has its dtype; otherwise its items as bytes.

    Takes dense tensors of any shape and strides, on any device. A dtype that safetensors lacks is
    returned as uint8 of shape `[*shape, bytes of an item]`, copied if the tensor is not contiguous.
    """
    tensor = tensor.detach() if tensor.requires_grad else tensor
    if tensor.dtype in SAFETENSORS:
        return tensor
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    shape = [*plain.shape, plain.element_size()]
    return (
        plain.reshape(-1).view(torch.uint8).reshape(shape)
        if plain.numel()
        else torch.empty(shape, dtype=torch.uint8, device=tensor.device)
    )


def host_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of `storable` as a contiguous CPU tensor; copied only if it is none."""
    return tensor.resolve_conj().resolve_neg().to("cpu").contiguous()


@dataclass(frozen=True, eq=False)
class FilePlan:
    """The header, offsets and size of one safetensors file."""

    header: bytes
    offsets: dict[str, int]
    """Name of each tensor -> offset of its bytes from the start of the file, in file order."""
    size: int
    """Bytes of the file."""
    gaps: tuple[tuple[int, bytes], ...] = ()
    """Offset and bytes of what else lies behind the header and never changes."""


Row = tuple[int, int, str, int, str]
"""One tensor of a file: negative item size, negative number of items, name (sorted rows are in file
order), size in bytes, and its entry in the header up to the offsets."""


def header_row(name: str, tensor: torch.Tensor) -> Row:
    """The row of a tensor that `storable` returned."""
    item, count = tensor.element_size(), tensor.numel()
    shape = ",".join(map(str, tensor.shape))
    entry = f'{json.dumps(name)}:{{"dtype":"{SAFETENSORS[tensor.dtype]}","shape":[{shape}],'
    return -item, -count, name, item * count, f'{entry}"data_offsets":['


def plan_file(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] = OF_TORCH
) -> FilePlan:
    """Lay out a file of tensors, each as `storable` returns it."""
    return plan_rows([header_row(name, tensor) for name, tensor in tensors.items()], metadata)


def plan_rows(rows: Iterable[Row], metadata: Mapping[str, str] = OF_TORCH) -> FilePlan:
    """Lay out a file of the tensors with these rows; faster if they are sorted."""
    ordered = sorted(rows)
    ends = list(accumulate(size for _, _, _, size, _ in ordered))
    entries = [
        f"{entry}{end - size},{end}]}}"
        for (_, _, _, size, entry), end in zip(ordered, ends, strict=True)
    ]
    first = json.dumps({"__metadata__": dict(metadata)}, separators=(",", ":")).removesuffix("}")
    text = ",".join([first, *entries]).encode() + b"}"
    padded = text + b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    data = _LENGTH_BYTES + len(padded)
    return FilePlan(
        len(padded).to_bytes(_LENGTH_BYTES, "little") + padded,
        {row[2]: data + end - row[3] for row, end in zip(ordered, ends, strict=True)},
        data + (ends[-1] if ends else 0),
    )


def file_pieces(
    plan: FilePlan, tensors: Mapping[str, torch.Tensor]
) -> Iterator[memoryview | bytes]:
    """The bytes of one file in order, copied to the host tensor by tensor."""
    yield plan.header
    for name in plan.offsets:
        host = host_tensor(tensors[name])  # must outlive the yielded view
        yield tensor_bytes(host)
