"""Reading the files of a checkpoint, from a disk or a store, into the tensors' memory, verified."""

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
from bt_lightning.store.transfer.byte_ranges import tail
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
"""Tensors of a file that are large for `TensorMemory`: a process may have 65,530 mappings."""


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


def read_whole_file(place: CheckpointReader, entry: FileEntry) -> bytearray:
    """A whole file, verified; for those that are not tensors.

    Raises:
        CheckpointCorruptError: it is missing, or not what the manifest says.
        StoreError: the store refused.
    """
    place.check(entry)  # before memory is taken for what a manifest claims
    data = bytearray(entry.size)
    for wanted in tail(entry, 0, place.piece_bytes):
        view = memoryview(data)[wanted.offset : wanted.offset + wanted.size]
        read_verified(place, entry, wanted.offset, [view])
    return data


def read_tensors(
    place: CheckpointReader,
    entries: Mapping[str, FileEntry],
    home: TensorMemory = HOST,
    on_host: Collection[tuple[str, str]] = (),
) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of some safetensors files, each in memory of its own, file by file.

    Several threads read, on the host straight into the tensors' memory, and verify what they read;
    the tensors are of use only if this returns. No header is parsed before it is verified. Those
    whose (label, name) is in `on_host` come to the host, the others to `home`.

    Raises:
        CheckpointCorruptError: a header is malformed, or bytes are not those of the manifest.
        StoreError: the store refused.
    """
    scratch, connections = Scratch(), place.connections

    def opened(label: str) -> _File:
        held = {name for file, name in on_host if file == label}
        return _opened(place, entries[label], scratch, home, held)

    files = in_parallel(opened, entries, connections)
    wanted = [(file, part) for file in files for part in file.rest(place.piece_bytes)]
    in_parallel(lambda pair: pair[0].read(place, pair[1]), wanted, connections)
    return {label: file.tensors for label, file in zip(entries, files, strict=True)}


class _File:
    """One safetensors file whose header is known: where each of its bytes goes."""

    def __init__(
        self,
        place: str,
        entry: FileEntry,
        begin: int,
        slots: Mapping[_Slot, TensorMemory],
        home: TensorMemory,
    ) -> None:
        self._entry = entry
        self._home = home
        self._starts: list[int] = []
        self._flats: list[Any] = []
        self._begin = begin
        self._read = 0
        self.tensors: dict[str, torch.Tensor] = {}
        large = _largest(slots)
        for slot, there in slots.items():
            tensor = _allocated(slot, f"{place}/{entry.path}", there, large=slot.name in large)
            self.tensors[slot.name] = tensor
            if slot.end > slot.begin:
                self._starts.append(begin + slot.begin)
                self._flats.append(there.flat(tensor))

    def targets(self, offset: int, size: int) -> list[Any]:
        """The memory that those bytes of the file go to; they lie behind the header."""
        end, found = offset + size, []
        at = max(0, bisect_right(self._starts, offset) - 1)
        while at < len(self._starts) and self._starts[at] < end:
            start = self._starts[at]
            found.append(self._flats[at][max(0, offset - start) : end - start])
            at += 1
        return found

    def take(self, front: memoryview) -> None:
        """Copy the verified front of the file to where it belongs."""
        self._read = len(front)
        data = front[self._begin :]
        targets = self.targets(self._begin, len(data))
        if targets:
            self._home.receive(targets, len(data), lambda memory: scatter(data, memory))

    def rest(self, most_bytes: int) -> Iterator[Range]:
        """What is behind the front; call it when `take` was."""
        return tail(self._entry, self._read, most_bytes)

    def read(self, place: CheckpointReader, wanted: Range) -> None:
        """Bring one range to where it belongs."""
        self._home.receive(
            self.targets(wanted.offset, wanted.size),
            wanted.size,
            lambda memory: read_verified(place, self._entry, wanted.offset, memory),
        )


def _opened(
    place: CheckpointReader,
    entry: FileEntry,
    scratch: Scratch,
    home: TensorMemory,
    on_host: Collection[str],
) -> _File:
    """Read the front of a file, and give each tensor its memory."""
    place.check(entry)
    name = f"{place.name}/{entry.path}"
    head = _front(place, entry, BLOCK_BYTES, scratch)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if len(head) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, entry.size - _LENGTH_BYTES):
        msg = f"{name} is damaged: its header of {length} bytes does not fit in {entry.size} bytes"
        raise CheckpointCorruptError(msg)
    begin = _LENGTH_BYTES + length
    if begin > len(head):
        head = _front(place, entry, begin, scratch)
    slots = _slots(bytes(head[_LENGTH_BYTES:begin]), name, entry)
    homes = {slot: HOST if slot.name in on_host else home for slot in slots}
    file = _File(place.name, entry, begin, homes, home)
    file.take(head)
    return file


def _front(
    place: CheckpointReader, entry: FileEntry, least_bytes: int, scratch: Scratch
) -> memoryview:
    """The first blocks of a file, verified: at least so many bytes, if there are so many."""
    size = min(entry.size, -(-least_bytes // BLOCK_BYTES) * BLOCK_BYTES)
    head = scratch.view(size)
    if size:
        read_verified(place, entry, 0, [head])
    return head


def _largest(slots: Iterable[_Slot]) -> set[str]:
    """The names of those that are worth mappings of their own."""
    large = sorted((slot for slot in slots if slot.size >= _LEAST_HUGE), key=lambda s: -s.size)
    return {slot.name for slot in large[:_MOST_HUGE]}


def _allocated(slot: _Slot, place: str, home: TensorMemory, *, large: bool) -> torch.Tensor:
    try:
        return home.empty(slot.shape, slot.dtype, large=large)
    except (RuntimeError, TypeError) as error:
        if slot.size:
            msg = f"no memory for the tensor {slot.name!r} of {slot.size:,} bytes of {place}"
            raise MemoryError(msg) from error
        # axes of which one is 0 may be too long
        msg = f"{place} is damaged: no tensor has the shape {slot.shape}"
        raise CheckpointCorruptError(msg) from error


def _slots(text: bytes, place: str, entry: FileEntry) -> list[_Slot]:
    """The slots of a safetensors file in the order of its bytes, checked before any allocation."""
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
    if reached != entry.size - _LENGTH_BYTES - len(text):
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
