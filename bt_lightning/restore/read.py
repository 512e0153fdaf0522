"""Reading the files of a checkpoint: straight into the tensors' memory, verified on the way."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.committed import NO_FILE, describe_damage
from bt_lightning.localdir.digest import Hasher
from bt_lightning.snapshot.dtypes import TORCH
from bt_lightning.snapshot.image import tensor_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import FileEntry

_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 256 * 1024 * 1024
_MOST_AXES: Final = 64
_PIECE: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_small(file: Path, place: str, entry: FileEntry) -> bytes:
    """A whole file, verified; for those that are not tensors.

    Raises:
        CheckpointCorruptError: it is missing, or not what the manifest says.
    """
    with _opened(file, place, entry) as stream:
        data = stream.readall() or b""
    _check(data, place, entry)
    return data


def read_tensors(file: Path, place: str, entry: FileEntry) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, each in CPU memory of its own.

    Raises:
        CheckpointCorruptError: the header is malformed, or the bytes are not those of the manifest.
    """
    hasher = Hasher()
    tensors = {}
    with _opened(file, place, entry) as stream:
        for slot in _header(stream, f"{place}/{entry.path}", entry.size, hasher):
            try:
                tensor = torch.empty(slot.shape, dtype=slot.dtype)
            except (RuntimeError, TypeError) as error:  # axes of which one is 0 may be too long
                msg = f"{place}/{entry.path} is damaged: no tensor has the shape {slot.shape}"
                raise CheckpointCorruptError(msg) from error
            view = tensor_bytes(tensor)
            while view:
                count = stream.readinto(view[:_PIECE])
                if not count:
                    msg = f"the checkpoint {place} is damaged: {entry.path} ends early"
                    raise CheckpointCorruptError(msg)
                hasher.update(view[:count])
                view = view[count:]
            tensors[slot.name] = tensor
    found = hasher.entry(entry.path)
    if found != entry:
        raise CheckpointCorruptError(describe_damage(place, entry, found))
    return tensors


def _opened(file: Path, place: str, entry: FileEntry) -> FileIO:
    """Open a file of the size that the manifest says; a pipe or a device is none, and not read."""
    try:
        stream = FileIO(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        msg = f"the checkpoint {place} is damaged: its file {entry.path} is missing"
        raise CheckpointCorruptError(msg) from error
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size == entry.size:
        return stream
    stream.close()
    msg = (
        f"the checkpoint {place} is damaged: {entry.path} is no file of {entry.size} bytes, as its"
        f" manifest says, but of {status.st_size}"
    )
    raise CheckpointCorruptError(msg)


def _check(data: bytes, place: str, entry: FileEntry) -> None:
    hasher = Hasher()
    hasher.update(data)
    found = hasher.entry(entry.path)
    if found != entry:
        raise CheckpointCorruptError(describe_damage(place, entry, found))


def _header(stream: FileIO, place: str, size: int, hasher: Hasher) -> list[_Slot]:
    """The slots of a safetensors file in the order of its bytes, checked before any allocation."""
    length_bytes = stream.read(_LENGTH_BYTES) or b""
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, size - _LENGTH_BYTES):
        msg = f"{place} is damaged: its header of {length} bytes does not fit in {size} bytes"
        raise CheckpointCorruptError(msg)
    text = stream.read(length) or b""
    hasher.update(length_bytes)
    hasher.update(text)
    try:
        header = json.loads(text, object_pairs_hook=_no_twins)
        slots = sorted(
            (_slot(name, item) for name, item in header.items() if name != "__metadata__"),
            key=lambda slot: (slot.begin, slot.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{place} is damaged: its header is no safetensors header ({error})"
        raise CheckpointCorruptError(msg) from error
    reached = 0
    for slot in slots:
        if slot.begin != reached:
            msg = f"{place} is damaged: tensor {slot.name!r} begins at {slot.begin}, not {reached}"
            raise CheckpointCorruptError(msg)
        reached = slot.end
    if reached != size - _LENGTH_BYTES - length:
        msg = f"{place} is damaged: its tensors end at {reached}, its bytes do not"
        raise CheckpointCorruptError(msg)
    return slots


def _no_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        msg = "a name stands twice"
        raise ValueError(msg)
    return found


def _slot(name: str, item: dict[str, Any]) -> _Slot:
    dtype = TORCH.get(item["dtype"])
    shape = item["shape"]
    begin, end = item["data_offsets"]
    if dtype is None:
        msg = f"tensor {name!r} has the unknown dtype {item['dtype']!r}"
        raise ValueError(msg)
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if not whole or len(shape) > _MOST_AXES:
        msg = f"tensor {name!r} has a malformed shape or offset"
        raise ValueError(msg)
    if end - begin != math.prod(shape) * dtype.itemsize:
        msg = f"tensor {name!r} of shape {shape} has {end - begin} bytes"
        raise ValueError(msg)
    return _Slot(name, dtype, tuple(shape), begin, end)
