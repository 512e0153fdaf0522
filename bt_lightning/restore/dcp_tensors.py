"""Tensors in the files of `torch.distributed.checkpoint` (`*.distcp`) as boxes.

Each box is a zip file of `torch.save` inside a larger file. Where its bytes lie is read from its
directory; no code of it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.restore.read_boxes import BytesPlace, by_file, read_boxes
from bt_lightning.restore.saved_tensors import SavedTensor, Wanted
from bt_lightning.sharding.read_plan import BoxCopy, SavedBox, plan_reads
from bt_lightning.snapshot.dtypes import plain_dtype
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.tensor_files.pickle_interpreter import PickledValue
from bt_lightning.tensor_files.pickled_tensors import read_zip
from bt_lightning.tensor_files.range_file import RangeFile
from bt_lightning.tensor_files.safe_unpickle import unpickle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from bt_lightning.restore.dcp_files import DcpFiles
    from bt_lightning.restore.dcp_metadata import DcpMetadata, DcpPlace
    from bt_lightning.sharding.boxes import Box

LABEL: Final = "dcp"
_ENDS_BYTES: Final = 16 * 1024
"""Bytes at both ends of a part that are read at once: its directory, and its pickle."""
_LOCAL_BYTES: Final = 30
"""Of the header before each member of a zip file (APPNOTE 4.3.7), without name and extra field."""
_MOST_WRAPPERS: Final = 8
_DTYPES: Final = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""Class of a storage -> dtype."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """The bytes of one box in a file."""

    offset: int
    """Of its first item."""
    strides: tuple[int, ...]
    """In items."""


class DcpTensors:
    """The tensors of a folder that DCP wrote; `metadata` is its `.metadata`, parsed."""

    def __init__(self, files: DcpFiles, metadata: DcpMetadata) -> None:
        self._files = files
        self._metadata = metadata
        self._stored: dict[DcpPlace, _Stored] = {}

    def find(self, label: str, name: str) -> SavedTensor:
        """The tensor of this name.

        Raises:
            CheckpointCorruptError: there is none, or torch has no such dtype.
        """
        found = self._metadata.tensors.get(name)
        dtype = plain_dtype(found.dtype) if found is not None else None
        if found is None or dtype is None:
            of = f" of the dtype {found.dtype}" if found is not None else ""
            msg = f"{self._files.name} has no tensor {name!r}{of} that torch can hold here"
            raise CheckpointCorruptError(msg)
        return SavedTensor(label, name, dtype, found.shape)

    def read(self, wanted: Sequence[Wanted]) -> int:
        """Fill all memory, each item once; return the number of bytes read.

        Verified if the folder has a manifest.

        Raises:
            CheckpointCorruptError: bytes are missing or changed, or no tensors.
            StoreError: the store failed.
        """
        before = self._files.small_bytes
        needed = [
            (each, box, place)
            for each in wanted
            if each.box.items
            for box, place in self._metadata.tensors[each.tensor.name].boxes
            if box.intersection(each.box)
        ]
        self._locate([(place, each.tensor, box) for each, box, place in needed])
        placed, later = [], []
        boxes: dict[int, list[SavedBox]] = {}
        for each, box, place in needed:
            stored = self._stored[place]
            if stored.strides == _row_major(box.sizes):
                boxes.setdefault(id(each), []).append(SavedBox(box, place.file, stored.offset))
            else:
                piece = _Strided(each, box, stored)
                later.append(piece)
                placed.append((place.file, BytesPlace(piece.copy, piece.memory)))
                boxes.setdefault(id(each), []).append(SavedBox(box, "", 0))
        for each in wanted:
            item = each.tensor.dtype.itemsize
            plan = plan_reads(each.tensor.name, each.box, boxes.get(id(each), ()), item)
            placed += [(path, BytesPlace(copy, each.memory)) for path, copy in plan if path]
        read = read_boxes(self._files, by_file(placed))
        for piece in later:
            piece.finish()
        return read + self._files.small_bytes - before

    def _locate(self, parts: Sequence[tuple[DcpPlace, SavedTensor, Box]]) -> None:
        """Find out where the items of these parts are."""
        missing = {part[0]: part for part in parts if part[0] not in self._stored}
        each = sorted(missing.values(), key=lambda part: (part[0].file, part[0].offset))
        found = in_parallel(self._stored_at, each, self._files.small_reads)
        self._stored.update(zip((part[0] for part in each), found, strict=True))

    def _stored_at(self, part: tuple[DcpPlace, SavedTensor, Box]) -> _Stored:
        place, tensor, box = part
        self._files.check(place)
        where = f"{self._files.name}/{place.file} at {place.offset}"
        ends = _Ends(self._files, place)
        members, data = read_zip(cast("IO[bytes]", RangeFile(place.length, ends.read)), where)
        try:
            offset, strides, key = _rebuilt(unpickle(data), box, tensor.dtype)
            start, size = next(v for name, v in members.items() if name.endswith(f"/data/{key}"))
            local = ends.read(start, _LOCAL_BYTES)
            begin = start + _LOCAL_BYTES + int.from_bytes(local[26:28], "little")
            begin += int.from_bytes(local[28:30], "little")
        except Exception as error:
            msg = f"{where} is no tensor of {list(box.sizes)} as torch.save writes it: {error}"
            raise CheckpointCorruptError(msg) from error
        item = tensor.dtype.itemsize
        last = offset + sum((n - 1) * s for n, s in zip(box.sizes, strides, strict=True))
        fits = (last + 1) * item <= size and begin + size <= place.length
        if local[:4] != b"PK\x03\x04" or local[8:10] != b"\0\0" or not fits:
            msg = f"{where} is damaged: {size} bytes are not {list(box.sizes)} of {tensor.dtype}"
            raise CheckpointCorruptError(msg)
        return _Stored(place.offset + begin + offset * item, strides)


class _Ends:
    """Reads of one part, of which both ends are read at once."""

    def __init__(self, files: DcpFiles, place: DcpPlace) -> None:
        self._files, self._place = files, place
        size = min(_ENDS_BYTES, place.length)
        self._head = files.bytes_at(place.file, place.offset, size)
        self._tail_at = place.length - size
        self._tail = self._head
        if self._tail_at:
            self._tail = files.bytes_at(place.file, place.offset + self._tail_at, size)

    def read(self, position: int, size: int) -> bytes:
        size = max(0, min(size, self._place.length - position))
        if position + size <= len(self._head):
            return self._head[position : position + size]
        if position >= self._tail_at:
            return self._tail[position - self._tail_at :][:size]
        return self._files.bytes_at(self._place.file, self._place.offset + position, size)


class _Strided:
    """A box whose items are not row-major in its file: read whole, and copied then."""

    def __init__(self, wanted: Wanted, box: Box, stored: _Stored) -> None:
        self._wanted, self._box, self._strides = wanted, box, stored.strides
        pairs = zip(box.sizes, stored.strides, strict=True)
        items = 1 + sum((count - 1) * stride for count, stride in pairs)
        self.memory = torch.empty(items, dtype=wanted.tensor.dtype, device="cpu")
        self.copy = BoxCopy(stored.offset, 0, items * self.memory.element_size())

    def finish(self) -> None:
        source = self.memory.as_strided(self._box.sizes, self._strides)
        wanted = self._wanted.box
        both = self._box.intersection(wanted)
        assert both is not None
        self._wanted.memory[_within(both, wanted)].copy_(source[_within(both, self._box)])


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    pairs = zip(part.offsets, part.sizes, whole.offsets, strict=True)
    return tuple(slice(begin - zero, begin - zero + size) for begin, size, zero in pairs)


def _row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _rebuilt(value: Any, box: Box, dtype: torch.dtype) -> tuple[int, tuple[int, ...], str]:
    """First item, strides in items, and key of the storage of a pickled tensor.

    Raises:
        ValueError: it is none, or none of this dtype and of the box's sizes.
    """
    for _ in range(_MOST_WRAPPERS):
        if not _name(value).startswith("_rebuild_parameter"):
            break
        value = value.args[0]
    if not _name(value).startswith("_rebuild_tensor"):
        msg = f"it holds {_name(value)}"
        raise ValueError(msg)
    storage, offset, sizes, strides = value.args[:4]
    kind = _name(storage.args[1])
    said = _name(value.args[6]) if kind == "UntypedStorage" else _DTYPES.get(kind, kind)
    sizes = tuple(sizes.args[0] if isinstance(sizes, PickledValue) else sizes)
    numbers = (offset, *strides)
    if (
        said != str(dtype).removeprefix("torch.")
        or sizes != box.sizes
        or len(strides) != len(sizes)
        or any(type(n) is not int or n < 0 for n in numbers)
    ):
        msg = f"it is {said} {list(sizes)}"
        raise ValueError(msg)
    marks = value.args[7:8] if kind == "UntypedStorage" else value.args[6:7]
    if any(isinstance(one, PickledValue) and any((one.pairs or [])[1::2]) for one in marks):
        msg = "it is a conjugated or negated view: save what resolve_conj().resolve_neg() makes"
        raise ValueError(msg)
    # a side of one item has any stride: take that of row-major order
    plain = zip(sizes, strides, _row_major(sizes), strict=True)
    steps = tuple(usual if size == 1 else stride for size, stride, usual in plain)
    return offset, steps, str(storage.args[2])


def _name(value: Any) -> str:
    """The last part of the name of a class or function of a pickle."""
    return value.full.rpartition(".")[2] if isinstance(value, PickledValue) else ""
