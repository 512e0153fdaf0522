"""The contents of a checkpoint's files: tensors by their headers, and comparison of their bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.verified_reads import read_item_range, read_open_file
from bt_lightning.tensor_files.pickled_tensors import parse_pickle, parse_zip
from bt_lightning.tensor_files.range_file import RangeFile
from bt_lightning.tensor_files.safe_unpickle import MOST_BYTES
from bt_lightning.tensor_files.tensor_headers import (
    LENGTH_BYTES,
    OF_ANYBODY,
    Header,
    header_bytes,
    parse_header,
)

if TYPE_CHECKING:
    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.tensor_files.tensor_headers import HeaderLimits

_ZIP_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"


def has_tensors(path: str) -> bool:
    """Whether `tensors_of` can read a file of that name."""
    return path.endswith((".safetensors", *_ZIP_SUFFIXES)) or path.rpartition("/")[2] == ".metadata"


def tensors_of(reader: CheckpointReader, item: CheckpointItem, entry: FileEntry) -> Header:
    """The tensors of a file; of a large file only the header is read. Runs no code from it.

    Raises:
        CheckpointCorruptError: the file is not what its name says.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    where = f"{item.name}/{entry.path}"
    if entry.path.endswith(".safetensors"):
        return header_of_file(reader, item, entry)
    if entry.path.endswith(_ZIP_SUFFIXES):
        with io.BufferedReader(_range_file(reader, entry)) as file:
            return parse_zip(file, where)
    if entry.size > MOST_BYTES:
        msg = f"{where} is too large to look into: of its {entry.size} bytes none are read"
        raise CheckpointCorruptError(msg)
    return parse_pickle(read_open_file(reader, entry), where)


def header_of_file(
    reader: CheckpointReader,
    item: CheckpointItem,
    entry: FileEntry,
    limits: HeaderLimits = OF_ANYBODY,
    *,
    is_verified: bool = False,
) -> Header:
    """The header of a safetensors file. Raises as `tensors_of`.

    With `is_verified` its bytes are compared with the manifest, which reads whole blocks: for those
    who use the places of tensors, and not only show them.
    """
    read = read_item_range if is_verified else _read
    where = f"{item.name}/{entry.path}"
    reader.check(entry)
    start = read(reader, entry, 0, min(LENGTH_BYTES, entry.size))
    length = header_bytes(start, entry.size, where, limits)
    data = read(reader, entry, LENGTH_BYTES, LENGTH_BYTES + length)
    return parse_header(data, entry.size, where, limits)


def is_not_from_torch(reader: CheckpointReader, entry: FileEntry) -> bool:
    """Whether a file only has the name of a torch file: a raw `.bin`, or torch before 1.6."""
    if not entry.path.endswith(_ZIP_SUFFIXES):
        return False
    reader.check(entry)
    start = _read(reader, entry, 0, min(len(_ZIP_START), entry.size))
    return start != _ZIP_START and (entry.path.endswith(".bin") or start[:1] == _PICKLE_START)


def _read(reader: CheckpointReader, entry: FileEntry, start: int, end: int) -> bytes:
    """Read without verification: a header is far smaller than the block of its digest."""
    buffer = bytearray(end - start)
    if buffer:
        reader.read_into(entry, start, [memoryview(buffer)])
    return bytes(buffer)


def _range_file(reader: CheckpointReader, entry: FileEntry) -> RangeFile:
    return RangeFile(entry.size, lambda at, count: _read(reader, entry, at, at + count))
