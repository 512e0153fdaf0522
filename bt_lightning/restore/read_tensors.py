"""Reads and verifies the files of a checkpoint, directly into the memory of the tensors."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.snapshot.dtypes import TORCH
from bt_lightning.store.transfer.byte_ranges import ranges_to_end
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.parallel_reads import HUGE_BYTES, Scratch, in_parallel, scatter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import torch

    from bt_lightning.manifest import FileEntry
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.store.transfer.byte_ranges import Range
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 256 * 1024 * 1024
_MOST_AXES: Final = 64
_LEAST_HUGE: Final = 2 * HUGE_BYTES
_MOST_HUGE: Final = 4096
"""Maximum number of tensors of a file that get mappings: a process may have 65,530 mappings."""


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def read_whole_file(reader: CheckpointReader, entry: FileEntry) -> bytearray:
    """The verified content of a file without tensors.

    Raises:
        CheckpointCorruptError: the file is missing or differs from the manifest.
        StoreError: the store failed.
    """
    reader.check(entry)  # before memory is allocated for the size that the manifest claims
    data = bytearray(entry.size)
    for wanted in ranges_to_end(entry, 0, reader.piece_bytes):
        view = memoryview(data)[wanted.offset : wanted.offset + wanted.size]
        read_verified(reader, entry, wanted.offset, [view])
    return data


def read_tensors(
    reader: CheckpointReader,
    entries: Mapping[str, FileEntry],
    memory: TensorMemory = HOST,
    on_host: Collection[tuple[str, str]] = (),
) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of some safetensors files: label of the file -> name -> tensor.

    Several threads read and verify, directly into the tensors if those are on the host. The tensors
    are valid only when this function returns. No header is parsed before it is verified. Tensors
    whose (label, name) is in `on_host` are on the host, the others in `memory`.

    Raises:
        CheckpointCorruptError: a header is malformed, or bytes differ from the manifest.
        MemoryError: there is no memory for a tensor.
        StoreError: the store failed.
    """
    scratch, connections = Scratch(), reader.connections

    def open_file(label: str) -> _File:
        host_names = {name for file, name in on_host if file == label}
        return _open_file(reader, entries[label], scratch, memory, host_names)

    files = in_parallel(open_file, entries, connections)
    wanted = [(file, part) for file in files for part in file.remaining_ranges(reader.piece_bytes)]
    in_parallel(lambda pair: pair[0].read(reader, pair[1]), wanted, connections)
    return {label: file.tensors for label, file in zip(entries, files, strict=True)}


class _File:
    """One safetensors file with a parsed header; maps ranges of the file to tensors' memory."""

    def __init__(
        self,
        checkpoint: str,
        entry: FileEntry,
        begin: int,
        slots: Mapping[_Slot, TensorMemory],
        memory: TensorMemory,
    ) -> None:
        self._entry = entry
        self._memory = memory
        self._starts: list[int] = []
        self._flats: list[Any] = []
        self._begin = begin
        self._read = 0
        self.tensors: dict[str, torch.Tensor] = {}
        large = _largest(slots)
        for slot, slot_memory in slots.items():
            file = f"{checkpoint}/{entry.path}"
            tensor = _allocated(slot, file, slot_memory, large=slot.name in large)
            self.tensors[slot.name] = tensor
            if slot.end > slot.begin:
                self._starts.append(begin + slot.begin)
                self._flats.append(slot_memory.flat(tensor))

    def targets(self, offset: int, size: int) -> list[Any]:
        """The memory for a range of the file behind its header."""
        end, found = offset + size, []
        at = max(0, bisect_right(self._starts, offset) - 1)
        while at < len(self._starts) and self._starts[at] < end:
            start = self._starts[at]
            found.append(self._flats[at][max(0, offset - start) : end - start])
            at += 1
        return found

    def fill_from_front(self, front: memoryview) -> None:
        """Copy the verified first bytes of the file to the tensors."""
        self._read = len(front)
        data = front[self._begin :]
        targets = self.targets(self._begin, len(data))
        if targets:
            self._memory.receive(targets, len(data), lambda buffers: scatter(data, buffers))

    def remaining_ranges(self, most_bytes: int) -> Iterator[Range]:
        """The ranges after the first bytes; call it after `fill_from_front`."""
        return ranges_to_end(self._entry, self._read, most_bytes)

    def read(self, reader: CheckpointReader, wanted: Range) -> None:
        """Read and verify one range into the tensors."""
        self._memory.receive(
            self.targets(wanted.offset, wanted.size),
            wanted.size,
            lambda buffers: read_verified(reader, self._entry, wanted.offset, buffers),
        )


def _open_file(
    reader: CheckpointReader,
    entry: FileEntry,
    scratch: Scratch,
    memory: TensorMemory,
    on_host: Collection[str],
) -> _File:
    """Read the header of a file and allocate its tensors."""
    reader.check(entry)
    name = f"{reader.name}/{entry.path}"
    head = _read_front(reader, entry, BLOCK_BYTES, scratch)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if len(head) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, entry.size - _LENGTH_BYTES):
        msg = f"{name} is damaged: its header of {length} bytes does not fit in {entry.size} bytes"
        raise CheckpointCorruptError(msg)
    begin = _LENGTH_BYTES + length
    if begin > len(head):
        head = _read_front(reader, entry, begin, scratch)
    slots = _slots(bytes(head[_LENGTH_BYTES:begin]), name, entry)
    memories = {slot: HOST if slot.name in on_host else memory for slot in slots}
    file = _File(reader.name, entry, begin, memories, memory)
    file.fill_from_front(head)
    return file


def _read_front(
    reader: CheckpointReader, entry: FileEntry, least_bytes: int, scratch: Scratch
) -> memoryview:
    """The verified first blocks of a file: at least `least_bytes`, or the whole file."""
    size = min(entry.size, -(-least_bytes // BLOCK_BYTES) * BLOCK_BYTES)
    head = scratch.view(size)
    if size:
        read_verified(reader, entry, 0, [head])
    return head


def _largest(slots: Iterable[_Slot]) -> set[str]:
    """The names of the tensors that get mappings of their own."""
    large = sorted((slot for slot in slots if slot.size >= _LEAST_HUGE), key=lambda s: -s.size)
    return {slot.name for slot in large[:_MOST_HUGE]}


def _allocated(slot: _Slot, file: str, memory: TensorMemory, *, large: bool) -> torch.Tensor:
    try:
        return memory.empty(slot.shape, slot.dtype, large=large)
    except (RuntimeError, TypeError) as error:
        if slot.size:
            msg = f"no memory for the tensor {slot.name!r} of {slot.size:,} bytes of {file}"
            raise MemoryError(msg) from error
        # an empty tensor may have an axis that is too long for torch
        msg = f"{file} is damaged: no tensor has the shape {slot.shape}"
        raise CheckpointCorruptError(msg) from error


def _slots(text: bytes, file: str, entry: FileEntry) -> list[_Slot]:
    """The tensors of a header in file order, checked before any allocation."""
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
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
    return slots


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        msg = "a name occurs twice"
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
