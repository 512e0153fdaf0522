"""Files of `torch.distributed.checkpoint`, as torch's own readers take them; made without torch.

A directory of DCP has `.metadata`, a pickle that says which tensors there are and where their
chunks lie, and files in which each chunk, and each value that is no tensor, is a whole file of
`torch.save`. Source: `torch/distributed/checkpoint/metadata.py` and `filesystem.py`, 2.4 to 2.13.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.tensor_files.pickle_writer import Called, Made, Named, Pairs, Referred, pickled
from bt_lightning.zip_layout import directory, place_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.sharding.boxes import Box

METADATA: Final = ".metadata"
_ALIGNMENT: Final = 64
_VERSION: Final = b"3\n"
_MODULE: Final = "torch.distributed.checkpoint.metadata"
_NAMES: Final = {
    "F64": ("float64", "DoubleStorage"),
    "F32": ("float32", "FloatStorage"),
    "F16": ("float16", "HalfStorage"),
    "BF16": ("bfloat16", "BFloat16Storage"),
    "I64": ("int64", "LongStorage"),
    "I32": ("int32", "IntStorage"),
    "I16": ("int16", "ShortStorage"),
    "I8": ("int8", "CharStorage"),
    "U8": ("uint8", "ByteStorage"),
    "U16": ("uint16", None),
    "U32": ("uint32", None),
    "U64": ("uint64", None),
    "BOOL": ("bool", "BoolStorage"),
    "C64": ("complex64", "ComplexFloatStorage"),
    "C128": ("complex128", "ComplexDoubleStorage"),
    "F8_E4M3": ("float8_e4m3fn", None),
    "F8_E5M2": ("float8_e5m2", None),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", None),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", None),
    "F8_E8M0": ("float8_e8m0fnu", None),
}
"""Dtype in safetensors -> in torch, and the class of its storage, which newer dtypes lack."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A box of a tensor, or a whole value that is no tensor, and where it lies."""

    box: Box | None
    """None: no tensor."""
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpEntry:
    """A tensor or value of the state."""

    path: tuple[str | int, ...]
    """Its place in the state: keys, and positions in lists."""
    dtype: str
    """In safetensors' names; empty if it is no tensor."""
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]

    @property
    def name(self) -> str:
        """The name in the metadata."""
        return ".".join(map(str, self.path))


class Envelope:
    """What stands around the bytes of one tensor in a file of `torch.save`.

    The file is `head`, the bytes of the tensor, if it is one, and what `tail` returns.
    """

    def __init__(self, data: bytes, size: int | None = None) -> None:
        """`data` is the pickle; `size` the bytes of the tensor, None for a value alone."""
        before = {"data.pkl": data, "byteorder": b"little"}
        sizes = {name: len(content) for name, content in before.items()}
        if size is not None:
            sizes["data/0"] = size
        sizes["version"] = len(_VERSION)
        named = [(f"archive/{name}".encode(), length) for name, length in sizes.items()]
        self._records = place_records(named, _ALIGNMENT)
        self._is_tensor = size is not None
        self._crcs = [zlib.crc32(content) for content in before.values()]
        head = [
            record.local_header + content + record.descriptor(crc)
            for record, content, crc in zip(
                self._records, before.values(), self._crcs, strict=False
            )
        ]
        self.head = b"".join(head) + (self._records[2].local_header if self._is_tensor else b"")

    def tail(self, crc: int = 0) -> bytes:
        """What follows the bytes of the tensor; `crc` is their CRC-32."""
        crcs = [*self._crcs, *([crc] if self._is_tensor else []), zlib.crc32(_VERSION)]
        own = self._records[2].descriptor(crc) if self._is_tensor else b""
        last = self._records[-1]
        version = last.local_header + _VERSION + last.descriptor(crcs[-1])
        entries = [record.entry(one) for record, one in zip(self._records, crcs, strict=True)]
        return own + version + directory(entries, last.end)


def tensor_envelope(name: str, dtype: str, shape: Sequence[int], size: int) -> Envelope:
    """The envelope of a row-major tensor of `size` bytes.

    Raises:
        UnsupportedStateError: torch has no such dtype.
    """
    return _envelope(*_names(name, dtype), tuple(shape), size)


@lru_cache(maxsize=1024)
def _envelope(dtype: str, storage: str | None, shape: tuple[int, ...], size: int) -> Envelope:
    """Of tensors of one form there are many."""
    strides = tuple(math.prod(max(1, s) for s in shape[d + 1 :]) for d in range(len(shape)))
    kind = Named("torch", storage) if storage else Named("torch.storage", "UntypedStorage")
    count = math.prod(shape) if storage else size
    bytes_of = Referred(("storage", kind, "0", "cpu", count))
    no_hooks = Called(Named("collections", "OrderedDict"))
    dtype_too = () if storage else (Named("torch", dtype),)
    args = (bytes_of, 0, shape, strides, False, no_hooks, *dtype_too)
    rebuild = Named("torch._utils", "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3")
    return Envelope(pickled(Called(rebuild, args)), size)


def metadata(entries: Iterable[DcpEntry]) -> bytes:
    """The content of `.metadata`; the same entries give the same bytes.

    Raises:
        UnsupportedStateError: torch has no dtype of that name.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    tensors = ((entry.name, _tensor(entry) if entry.dtype else _VALUE) for entry in ordered)
    places = (
        (
            _made("MetadataIndex", fqn=entry.name, offset=_offsets(chunk.box), index=None),
            Made(
                Named("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
                {
                    "relative_path": chunk.file,
                    "offset": chunk.offset,
                    "length": chunk.length,
                },
            ),
        )
        for entry in ordered
        for chunk in entry.chunks
    )
    whole = _made(
        "Metadata",
        state_dict_metadata=Pairs(tensors),
        planner_data={entry.name: entry.path for entry in ordered},
        storage_data=Pairs(places),
        storage_meta=None,
    )
    return pickled(whole)


def _made(name: str, **attributes: Any) -> Made:
    return Made(Named(_MODULE, name), attributes)


_VALUE: Final = Made(Named(_MODULE, "BytesStorageMetadata"))


def _tensor(entry: DcpEntry) -> Made:
    of_torch, _ = _names(entry.name, entry.dtype)
    layout = Called(Named("torch.serialization", "_get_layout"), ("torch.strided",))
    memory_format = Called(Named(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Named("torch", of_torch), layout, False, memory_format, False)
    chunks = [
        _made("ChunkStorageMetadata", offsets=_size(box.offsets), sizes=_size(box.sizes))
        for box in (chunk.box for chunk in entry.chunks)
        if box is not None
    ]
    properties = Made(Named(_MODULE, "TensorProperties"), state)
    size = _size(entry.shape)
    return _made("TensorStorageMetadata", properties=properties, size=size, chunks=chunks)


def _offsets(box: Box | None) -> Called | None:
    return None if box is None else _size(box.offsets)


def _size(shape: Sequence[int]) -> Called:
    return Called(Named("torch", "Size"), (tuple(shape),))


def _names(name: str, dtype: str) -> tuple[str, str | None]:
    if dtype not in _NAMES:
        msg = f"{name} is {dtype}, which has no form in torch.distributed.checkpoint"
        raise UnsupportedStateError(msg)
    return _NAMES[dtype]
