"""The header of a safetensors file of a checkpoint, parsed after its bytes were verified."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.snapshot.dtypes import TORCH
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.store.transfer.parallel_reads import Scratch

_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 256 * 1024 * 1024
_MOST_AXES: Final = 64
_FIRST_BYTES: Final = 256 * 1024
"""Of the first read: the header of some 1,000 tensors, and little of the file of one rank."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a file, as its header says."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Of its bytes, behind the header."""
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a file holds, and where."""

    begin: int
    """Offset of the first byte behind the header."""
    slots: tuple[Slot, ...]
    """In file order."""
    metadata: Mapping[str, Any]
    front: memoryview
    """The verified first bytes of the file, whole blocks; in the scratch of this thread."""


def read_header(reader: CheckpointReader, entry: FileEntry, scratch: Scratch) -> FileHeader:
    """Read and verify the first blocks of a file, and parse its header.

    Raises:
        CheckpointCorruptError: the header is malformed, or bytes differ from the manifest.
        StoreError: the store failed.
    """
    reader.check(entry)
    name = f"{reader.name}/{entry.path}"
    head = _read_front(reader, entry, b"", _FIRST_BYTES, scratch)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if len(head) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, entry.size - _LENGTH_BYTES):
        msg = f"{name} is damaged: its header of {length} bytes does not fit in {entry.size} bytes"
        raise CheckpointCorruptError(msg)
    begin = _LENGTH_BYTES + length
    if begin > len(head):
        head = _read_front(reader, entry, bytes(head), begin, scratch)
    slots, metadata = _parsed(bytes(head[_LENGTH_BYTES:begin]), name, entry)
    return FileHeader(begin, tuple(slots), metadata, head)


def _read_front(
    reader: CheckpointReader, entry: FileEntry, known: bytes, least_bytes: int, scratch: Scratch
) -> memoryview:
    """The verified first blocks of a file: at least `least_bytes`, or the whole file.

    `known` are those that were read.
    """
    size = min(entry.size, -(-least_bytes // entry.block_bytes) * entry.block_bytes)
    head = scratch.view(size)
    head[: len(known)] = known
    if size > len(known):
        read_verified(reader, entry, len(known), [head[len(known) :]])
    return head


def _parsed(text: bytes, file: str, entry: FileEntry) -> tuple[list[Slot], dict[str, Any]]:
    """The tensors in file order, checked before any allocation, and the metadata."""
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        metadata = dict(header.get("__metadata__", {}))
        slots = sorted(
            (_slot(name, item) for name, item in header.items() if name != "__metadata__"),
            key=lambda slot: (slot.begin, slot.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{file} is damaged: its header is no safetensors header ({error})"
        raise CheckpointCorruptError(msg) from error
    reached = 0
    for slot in slots:
        if slot.begin != reached:
            msg = f"{file} is damaged: tensor {slot.name!r} begins at {slot.begin}, not {reached}"
            raise CheckpointCorruptError(msg)
        reached = slot.end
    if reached != entry.size - _LENGTH_BYTES - len(text):
        msg = f"{file} is damaged: its tensors end at {reached}, its bytes do not"
        raise CheckpointCorruptError(msg)
    return slots, metadata


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        msg = "a name occurs twice"
        raise ValueError(msg)
    return found


def _slot(name: str, item: dict[str, Any]) -> Slot:
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
    return Slot(name, dtype, tuple(shape), begin, end)
