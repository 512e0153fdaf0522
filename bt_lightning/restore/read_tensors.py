"""Reads and verifies the files of a checkpoint, directly into the memory of the tensors."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.restore.file_headers import read_header
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.store.transfer.byte_ranges import ranges_to_end
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.fresh_memory import HUGE_BYTES
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel, scatter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import torch

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.restore.file_headers import Slot
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.store.transfer.byte_ranges import Range
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

T = TypeVar("T")
_LEAST_HUGE: Final = 2 * HUGE_BYTES
_MOST_HUGE: Final = 4096
"""Maximum number of tensors of a file that get mappings: a process may have 65,530 mappings."""


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
        slots: Mapping[Slot, TensorMemory],
        memory: TensorMemory,
    ) -> None:
        self._entry = entry
        self._memory = memory
        self._starts: list[int] = []
        self._flats: list[Any] = []
        self._begin = begin
        self._read = 0
        self.tensors: dict[str, torch.Tensor] = {}
        large = largest({slot.name: slot.size for slot in slots})
        for slot, slot_memory in slots.items():
            file = f"{checkpoint}/{entry.path}"
            tensor = _allocated(slot, file, slot_memory, large=slot.name in large, begin=begin)
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
    header = read_header(reader, entry, scratch)
    memories = {slot: HOST if slot.name in on_host else memory for slot in header.slots}
    file = _File(reader.name, entry, header.begin, memories, memory)
    file.fill_from_front(header.front)
    return file


def largest(sizes: Mapping[T, int]) -> set[T]:
    """The keys of those sizes, in bytes, for which memory gets mappings of its own."""
    large = [(-size, number) for number, size in enumerate(sizes.values()) if size >= _LEAST_HUGE]
    keys = [*sizes]
    return {keys[number] for _, number in sorted(large)[:_MOST_HUGE]}


def _allocated(
    slot: Slot, file: str, memory: TensorMemory, *, large: bool, begin: int
) -> torch.Tensor:
    try:
        return memory.empty(slot.shape, slot.dtype, large=large, offset=begin + slot.begin)
    except (RuntimeError, TypeError) as error:
        if slot.size:
            msg = f"no memory for the tensor {slot.name!r} of {slot.size:,} bytes of {file}"
            raise MemoryError(msg) from error
        # an empty tensor may have an axis that is too long for torch
        msg = f"{file} is damaged: no tensor has the shape {slot.shape}"
        raise CheckpointCorruptError(msg) from error
