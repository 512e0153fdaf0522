"""What is in the files of a checkpoint: tensors by their headers, text, and what differs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.pickled_tensors import parse_pickle, parse_zip
from bt_lightning.manage.safe_unpickle import MOST_BYTES
from bt_lightning.manage.tensor_headers import LENGTH_BYTES, Header, header_bytes, parse_header
from bt_lightning.manage.verified_reads import open_reader, read_file, read_item_range
from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.tensor_headers import Tensor
    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_ZIPS = (".ckpt", ".pt", ".pth", ".bin")
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"


def has_tensors(path: str) -> bool:
    """Whether `tensors_of` knows what to do with a file of that name."""
    return path.endswith((".safetensors", *_ZIPS)) or path.rpartition("/")[2] == ".metadata"


def tensors_of(shelf: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> Header:
    """The tensors of a file; of a large file only the header is read. No code of it is run.

    Raises:
        CheckpointCorruptError: the file is not what its name says.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    where = f"{item.name}/{entry.path}"
    if entry.path.endswith(".safetensors"):
        with open_reader(shelf, item) as place:
            place.check(entry)
            start = _read(place, entry, 0, min(LENGTH_BYTES, entry.size))
            length = header_bytes(start, entry.size, where)
            data = _read(place, entry, LENGTH_BYTES, LENGTH_BYTES + length)
        return parse_header(data, entry.size, where)
    if entry.path.endswith(_ZIPS):
        with open_reader(shelf, item) as place, io.BufferedReader(RangeFile(place, entry)) as file:
            return parse_zip(file, where)
    if entry.size > MOST_BYTES:
        msg = f"{where} is too large to look into: of its {entry.size} bytes none are read"
        raise CheckpointCorruptError(msg)
    return parse_pickle(read_file(shelf, item, entry), where)


def is_of_others(shelf: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> bool:
    """Whether a file is named like torch's, yet none: a raw `.bin`, or torch's before 1.6."""
    if not entry.path.endswith(_ZIPS):
        return False
    with open_reader(shelf, item) as place:
        place.check(entry)
        start = _read(place, entry, 0, min(len(_ZIP_START), entry.size))
    return start != _ZIP_START and (entry.path.endswith(".bin") or start[:1] == _PICKLE_START)


def same_bytes(
    one: tuple[CheckpointReader, FileEntry, Tensor],
    other: tuple[CheckpointReader, FileEntry, Tensor],
) -> bool:
    """Whether two tensors of one size have the same bytes: both are read, and verified."""
    return all(a == b for a, b in zip(_pieces(*one), _pieces(*other), strict=True))


def _pieces(place: CheckpointReader, entry: FileEntry, tensor: Tensor) -> Iterator[bytes]:
    assert tensor.offset is not None, "a safetensors header gives every offset"
    for start in range(0, tensor.size, BLOCK_BYTES):
        end = min(start + BLOCK_BYTES, tensor.size)
        yield read_item_range(place, entry, tensor.offset + start, tensor.offset + end)


def _read(place: CheckpointReader, entry: FileEntry, start: int, end: int) -> bytes:
    """Not verified: a header is far smaller than the block whose digest is known."""
    buffer = bytearray(end - start)
    if buffer:
        place.read_into(entry, start, [memoryview(buffer)])
    return bytes(buffer)


class RangeFile(io.RawIOBase):
    """A file of a checkpoint, read by ranges as somebody seeks and reads."""

    def __init__(self, place: CheckpointReader, entry: FileEntry) -> None:
        super().__init__()
        self._place, self._entry, self._at = place, entry, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            msg = f"a negative position, {base + offset}"
            raise ValueError(msg)
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes."""
        count = max(0, min(len(buffer), self._entry.size - self._at))
        if count:
            self._place.read_into(self._entry, self._at, [memoryview(buffer)[:count]])
        self._at += count
        return count
