"""The tensors of a committed checkpoint as boxes in files, whoever wrote it, on however many ranks.

A full checkpoint has one box a tensor, which is all of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import SHARDS
from bt_lightning.restore.decode_tree import names_needed_on_host
from bt_lightning.restore.file_headers import read_header
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.restore.read_boxes import BytesPlace, by_file, read_boxes
from bt_lightning.restore.read_tensors import largest, read_whole_file
from bt_lightning.sharding.boxes import Box, whole_box
from bt_lightning.sharding.read_plan import SavedBox, plan_reads
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import writer_of
from bt_lightning.snapshot.dtypes import TORCH
from bt_lightning.snapshot.encode_tree import KIND
from bt_lightning.snapshot.shard_encoding import SHARDS as SHARDED_LABEL
from bt_lightning.snapshot.shared_tensors import TENSOR_FILES
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import torch

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.restore.file_headers import Slot
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.sharding.structure import Form
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_MOST_FRONT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a checkpoint; none of its bytes is read."""

    label: str
    """Of its file in the tree (`shards`, `weights`, `state`)."""
    name: str
    """In the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the whole tensor."""
    packed: torch.dtype | None = None
    """If safetensors lacks the dtype: the real one, of which the last dimension has the bytes."""

    @property
    def item_dtype(self) -> torch.dtype:
        """The dtype of the tensor that was saved."""
        return self.packed or self.dtype

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of the tensor that was saved."""
        return self.shape if self.packed is None else self.shape[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A box of a tensor that is to be loaded, and the memory for it."""

    tensor: SavedTensor
    box: Box
    memory: torch.Tensor
    """Contiguous, of the box's sizes and the tensor's dtype, on any device; without a gradient."""


class SavedTensors(Protocol):
    """Tensors of a checkpoint, by label and name."""

    def find(self, label: str, name: str) -> SavedTensor:
        """The tensor; `CheckpointCorruptError` if there is none."""

    def read(self, wanted: Sequence[Wanted]) -> int:
        """Fill all memory, each item once, and return the number of bytes read."""


class CheckpointTensors:
    """The tensors in safetensors files of a checkpoint, sharded or full.

    Args:
        reader: of the checkpoint.
        index: where boxes of sharded tensors are; None for a full checkpoint.
    """

    def __init__(self, reader: CheckpointReader, index: ShardIndex | None) -> None:
        self._reader = reader
        self._index = index
        self._opened: dict[str, _OpenFile] = {}
        self._scratch = Scratch()
        self._front_bytes = 0
        self._read = 0
        self._shared: dict[tuple[Form, Box], list[tuple[Box, tuple[int, ...]]]] = {}
        self.piece_bytes, self.connections = reader.piece_bytes, reader.connections
        self.gap_bytes = reader.gap_bytes

    def find(self, label: str, name: str) -> SavedTensor:
        """The tensor with this label and name.

        Raises:
            CheckpointCorruptError: there is none, or the header of its file is damaged.
            StoreError: the store failed.
        """
        if label == SHARDED_LABEL and self._index is not None:
            stored = self._index.stored_name(name)
            held = self._index.structure.tensors.get(stored)
            if held is not None and held.dtype in TORCH:
                return SavedTensor(label, stored, TORCH[held.dtype], held.shape)
        elif label in TENSOR_FILES and (path := TENSOR_FILES[label]) in self._paths:
            slot = self._open([path])[path].slots.get(name)
            if slot is not None:
                return SavedTensor(label, name, slot.dtype, slot.shape)
        msg = f"the checkpoint {self._reader.name} is damaged: it has no tensor {name!r} ({label})"
        raise CheckpointCorruptError(msg)

    def read(self, wanted: Sequence[Wanted]) -> int:
        """Fill all memory, each item once, by verified reads; return the number of bytes read.

        Raises:
            CheckpointCorruptError: bytes are missing or changed, or a file's header says another
                thing than the index; memory holds garbage then.
            StoreError: the store failed.
        """
        before, self._read = self._read, 0
        owners = [(each, self._owners(each)) for each in wanted if each.box.items]
        files = self._open({path for _, boxes in owners for path in boxes.values()})
        placed = []
        for each, boxes in owners:
            saved = [
                SavedBox(box, path, self._offset(files[path], each.tensor, box))
                for box, path in boxes.items()
            ]
            plan = plan_reads(each.tensor.name, each.box, saved, each.tensor.dtype.itemsize)
            placed += [(path, BytesPlace(copy, each.memory)) for path, copy in plan]
        read = before + self._read + read_boxes(self, by_file(placed))
        self._read = 0
        return read

    def entry(self, path: str) -> FileEntry:
        """The file in the manifest."""
        entry = self._reader.manifest.entry(path)
        if entry is None:
            msg = f"the checkpoint {self._reader.name} is damaged: its manifest names no {path}"
            raise CheckpointCorruptError(msg)
        return entry

    def front(self, path: str) -> memoryview:
        """The first blocks of an opened file, if they were kept."""
        return self._opened[path].front

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """These blocks are read soon."""
        self._reader.expect(entry, offset, size)

    def read_blocks(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets` with verified bytes."""
        read_verified(self._reader, entry, offset, targets)

    @property
    def _paths(self) -> set[str]:
        return {entry.path for entry in self._reader.manifest.files}

    def _owners(self, wanted: Wanted) -> dict[Box, str]:
        """The saved boxes that share items with a wanted one, and the files that hold them."""
        tensor = wanted.tensor
        if tensor.label != SHARDED_LABEL or self._index is None:
            return {whole_box(tensor.shape): TENSOR_FILES[tensor.label]}
        held, replica = self._index.tensor(tensor.name), self._index.replicas[tensor.name]
        key = (held.form, wanted.box)
        if key not in self._shared:  # tensors of many layers share their boxes
            holders = self._index.structure.holders(tensor.name).items()
            self._shared[key] = [each for each in holders if each[0].intersection(wanted.box)]
        shared = self._shared[key]
        return {box: self._index.files[writer_of(ranks, replica)] for box, ranks in shared}

    def _offset(self, file: _OpenFile, tensor: SavedTensor, box: Box) -> int:
        """Where the bytes of a box begin in its file, which must say the same of it."""
        slot = file.slots.get(tensor.name)
        at = file.offsets.get(tensor.name, box.offsets)
        if slot is None or (slot.dtype, slot.shape, at) != (tensor.dtype, box.sizes, box.offsets):
            has = f"{slot.dtype} {list(slot.shape)} at {list(at)}" if slot else "nothing"
            msg = (
                f"the checkpoint {self._reader.name} is damaged: {file.path} has {has} of"
                f" {tensor.name!r}, and the index says {tensor.dtype} {list(box.sizes)} at"
                f" {list(box.offsets)}"
            )
            raise CheckpointCorruptError(msg)
        return file.begin + slot.begin

    def _open(self, paths: Iterable[str]) -> Mapping[str, _OpenFile]:
        missing = sorted({path for path in paths if path not in self._opened})
        opened = in_parallel(self._open_one, missing, self._reader.connections)
        for path, file in zip(missing, opened, strict=True):
            self._opened[path] = file
            self._read += file.read
            if self._front_bytes + len(file.front) > _MOST_FRONT_BYTES:
                file.front = memoryview(b"")
            self._front_bytes += len(file.front)
        return self._opened

    def _open_one(self, path: str) -> _OpenFile:
        header = read_header(self._reader, self.entry(path), self._scratch)
        offsets = _saved_offsets(header.metadata, f"{self._reader.name}/{path}")
        front = memoryview(bytearray(header.front))
        slots = {slot.name: slot for slot in header.slots}
        return _OpenFile(path, header.begin, slots, offsets, front, len(front))


@dataclass(slots=True)
class _OpenFile:
    path: str
    begin: int
    slots: Mapping[str, Slot]
    offsets: Mapping[str, tuple[int, ...]]
    front: memoryview
    read: int
    """Bytes that were read for the header."""


def _saved_offsets(metadata: Mapping[str, Any], file: str) -> dict[str, tuple[int, ...]]:
    """What torch's readers would take for the offsets of the boxes in a file."""
    try:
        info = json.loads(metadata.get("DCP_SHARDING_INFO", "{}"))
        return {name: tuple(each["saved_offsets"]) for name, each in info.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{file} is damaged: its DCP_SHARDING_INFO is malformed ({error})"
        raise CheckpointCorruptError(msg) from error


def open_tensors(reader: CheckpointReader) -> CheckpointTensors:
    """The tensors of a committed checkpoint; reads the index of a sharded one.

    Raises:
        CheckpointCorruptError: the index is damaged.
        StoreError: the store failed.
    """
    entry = reader.manifest.entry(SHARDS)
    if entry is None:
        return CheckpointTensors(reader, None)
    data = read_whole_file(reader, entry)
    return CheckpointTensors(reader, ShardIndex.from_bytes(bytes(data), f"{reader.name}/{SHARDS}"))


def referenced(tree: object) -> set[tuple[str, str]]:
    """(label, name) of the tensors that a part of a tree refers to."""
    found, rest = names_needed_on_host(tree), [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, list | tuple):
            rest += node
        elif isinstance(node, dict):
            if node.get(KIND) == "tensor":
                found.add((str(node.get("file")), str(node.get("name"))))
            rest += node.values()
    return found


def read_whole(
    tensors: SavedTensors,
    names: Iterable[tuple[str, str]],
    memory: TensorMemory = HOST,
    on_host: Collection[tuple[str, str]] = (),
) -> tuple[dict[str, dict[str, torch.Tensor]], int]:
    """Whole tensors, label -> name -> tensor, and the number of bytes read for them.

    Those whose (label, name) is in `on_host` are on the host, the others in `memory`.

    Raises:
        CheckpointCorruptError, StoreError: as `SavedTensors.read`.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    each = [(key, tensors.find(*key)) for key in sorted(names)]
    sizes = {key: math.prod(one.shape) * one.dtype.itemsize for key, one in each}
    large = largest(sizes)
    wanted = []
    for (label, name), one in each:
        place = HOST if (label, name) in on_host else memory
        new = place.empty(one.shape, one.dtype, large=(label, name) in large)
        wanted.append(Wanted(one, whole_box(one.shape), new))
        found.setdefault(label, {})[name] = new
    return found, tensors.read(wanted)
