"""Packs the many small tensors of a nested value into one flat tensor per dtype and device.

Lists of thousands of tensors (the predictions that a metric collects) and hundreds of scalars (what
`self.log` sums up) then cost a save a few tensors, and a few copies from the device.
"""

from __future__ import annotations

from typing import Any

import torch

_ONE, _MANY = "tensor", "tensors"


def nbytes_of(value: Any) -> int:
    """Bytes of all tensors in `value`, whose shared memory counts each time."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(nbytes_of, value.values()))
    return sum(map(nbytes_of, value)) if isinstance(value, list | tuple) else 0


class _Packer:
    def __init__(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._used: dict[str, int] = {}

    def pack(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {_ONE: self._place([value]), "shape": list(value.shape)}
        if isinstance(value, dict):
            return {key: self.pack(item) for key, item in value.items()}
        if isinstance(value, list) and value and _alike(value):
            shapes = torch.tensor([item.shape for item in value], dtype=torch.int64, device="cpu")
            return {_MANY: self._place(value), "shapes": self.pack(shapes)}
        if isinstance(value, list | tuple):
            return [self.pack(item) for item in value]
        return value

    def _place(self, tensors: list[torch.Tensor]) -> list[Any]:
        """The flat tensor's name and the first of its elements that these have."""
        name = f"{tensors[0].dtype}@{tensors[0].device}".removeprefix("torch.")
        start = self._used.get(name, 0)
        self._parts.setdefault(name, []).extend(t.detach().reshape(-1) for t in tensors)
        self._used[name] = start + sum(tensor.numel() for tensor in tensors)
        return [name, start]

    def flats(self) -> dict[str, torch.Tensor]:
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


def _alike(values: list[Any]) -> bool:
    if not all(isinstance(value, torch.Tensor) for value in values):
        return False
    first = values[0]
    return all(
        value.dtype == first.dtype and value.device == first.device and value.ndim == first.ndim
        for value in values
    )


def pack(value: Any) -> dict[str, Any]:
    """`value`, of plain values and tensors in dicts and lists, as a tree and its flat tensors.

    The flat tensors are copies on the devices of the packed ones; a tuple becomes a list.
    """
    packer = _Packer()
    tree = packer.pack(value)  # before the flat tensors are made of what it found
    return {"tree": tree, "flat": packer.flats()}


def unpack(packed: dict[str, Any]) -> Any:
    """The value that `pack` was given; its tensors are views of the flat ones."""
    return _unpack(packed["tree"], packed["flat"])


def _unpack(value: Any, flat: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, flat) for item in value]
    if not isinstance(value, dict):
        return value
    if _ONE in value:
        name, start = value[_ONE]
        shape = torch.Size(value["shape"])
        return flat[name][start : start + shape.numel()].view(shape)
    if _MANY in value:
        name, start = value[_MANY]
        shapes = [torch.Size(shape) for shape in _unpack(value["shapes"], flat).tolist()]
        sizes = [shape.numel() for shape in shapes]
        parts = torch.split(flat[name][start : start + sum(sizes)], sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return {key: _unpack(item, flat) for key, item in value.items()}
