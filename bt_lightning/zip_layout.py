"""Layout of a zip file as `torch.save` writes it: stored records, each aligned by padding.

Sources of the format: PKWARE's APPNOTE 6.3.10, §4.3; torch's `caffe2/serialize/inline_container.cc`
and its copy of miniz. The sizes and the CRC of a record follow its bytes (a data descriptor), so
they can be filled in when the bytes are known; nothing else depends on the bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_LIMIT: Final = 0xFFFFFFFF
"""Sizes and offsets from here on stand in zip64 fields."""
_FEW: Final = 0xFFFF
_STORED_UTF8: Final = 0x0800
_DESCRIBED: Final = 0x0008
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR: Final = struct.Struct("<4s3I")
_DESCRIPTOR64: Final = struct.Struct("<4sI2Q")
_EXTRA: Final = struct.Struct("<2H")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4s4H2IH")
_ZIP64: Final = 1
_PADDING: Final = struct.unpack("<H", b"FB")[0]
_VERSION_MADE: Final = 0x031E
_VERSION_NEEDED: Final = 45
_CRC_IN_ENTRY: Final = 16
_CRC_IN_DESCRIPTOR: Final = 4
_CHUNK: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """The place of one record in its file; offsets and sizes in bytes."""

    name: bytes
    size: int
    header: int
    """Offset of its local header."""
    start: int
    """Offset of its bytes."""

    @property
    def end(self) -> int:
        """Offset of what follows the record and its descriptor."""
        if not self.size:
            return self.start
        descriptor = _DESCRIPTOR64 if self._is_wide else _DESCRIPTOR
        return self.start + self.size + descriptor.size

    @property
    def _is_wide(self) -> bool:
        return self.size >= _LIMIT or self.header >= _LIMIT

    @property
    def is_well_placed(self) -> bool:
        """Whether a header of this place can be padded so that the bytes begin at `start`."""
        padding = self.start - self.header - _LOCAL.size - len(self.name)
        return len(_zip64(self, packed=0)) + _EXTRA.size <= padding <= _FEW

    @property
    def local_header(self) -> bytes:
        """The bytes from `header` to `start`: header, name, zip64 field, padding."""
        extra = _zip64(self, packed=0)
        padding = self.start - self.header - _LOCAL.size - len(self.name) - len(extra)
        head = _LOCAL.pack(
            b"PK\3\4", 0, self._flags, 0, 0, 0, 0, 0, 0, len(self.name), len(extra) + padding
        )
        pad = _EXTRA.pack(_PADDING, padding - _EXTRA.size) + b"Z" * (padding - _EXTRA.size)
        return head + self.name + extra + pad

    @property
    def _flags(self) -> int:
        return _STORED_UTF8 | (_DESCRIBED if self.size else 0)

    def descriptor(self, crc: int = 0) -> bytes:
        """The bytes behind those of the record, up to `end`."""
        if not self.size:
            return b""
        form = _DESCRIPTOR64 if self._is_wide else _DESCRIPTOR
        return form.pack(b"PK\7\10", crc, self.size, self.size)

    def entry(self, crc: int = 0) -> bytes:
        """The record's entry in the directory; its length depends on sizes and offsets only."""
        extra = _zip64(self, packed=self.size)
        size, header = self.size, self.header
        size = min(_LIMIT, size)
        head = _ENTRY.pack(
            b"PK\1\2", 0, 0, self._flags, 0, 0, 0, crc, size, size,
            len(self.name), len(extra), 0, 0, 0, 0, min(header, _LIMIT),
        )  # fmt: skip
        return head + self.name + extra


def _zip64(record: ZipRecord, *, packed: int) -> bytes:
    wide = record.size >= _LIMIT
    values = [record.size, packed] if wide else []
    if record.header >= _LIMIT:
        values.append(record.header)
    if not values:
        return b""
    return _EXTRA.pack(_ZIP64, 8 * len(values)) + struct.pack(f"<{len(values)}Q", *values)


def place_records(
    sizes: Iterable[tuple[bytes, int]], alignment: int, header: int = 0
) -> list[ZipRecord]:
    """Place records of these names and sizes one after another; the first header is at `header`.

    The bytes of each begin at a multiple of `alignment`.
    """
    records = []
    for name, size in sizes:
        start = header + _LOCAL.size + len(name) + _EXTRA.size
        if wide := 2 * (size >= _LIMIT) + (header >= _LIMIT):
            start += _EXTRA.size + 8 * wide
        record = ZipRecord(name, size, header, -(-start // alignment) * alignment)
        records.append(record)
        header = record.end
    return records


def directory(entries: Sequence[bytes], start: int) -> bytes:
    """The end of a file, from offset `start`: the entries of all records, and where they are."""
    listed = b"".join(entries)
    count, size, end = len(entries), len(listed), start + len(listed)
    few = min(count, _FEW)
    return b"".join(
        (
            listed,
            _END64.pack(
                b"PK\6\6", _END64.size - 12, _VERSION_MADE, _VERSION_NEEDED, 0, 0,
                count, count, size, start,
            ),
            _LOCATOR.pack(b"PK\6\7", 0, end, 1),
            _END.pack(b"PK\5\6", 0, 0, few, few, min(size, _LIMIT), min(start, _LIMIT), 0),
        )
    )  # fmt: skip


def fill_checksums(
    image: memoryview,
    write: Callable[[int, bytes], None],
    crc32: Callable[[memoryview, int], int] = zlib.crc32,
) -> None:
    """Compute the CRC of each record of a zip file laid out here, and write it where it belongs.

    `image` is the whole file; `write` puts bytes at an offset of it, and is called for what differs
    only, so that a second call writes nothing. `crc32` goes on from a value, as `zlib.crc32`.

    Raises:
        CheckpointCorruptError: the file is no such zip file.
    """
    try:
        for entry, record in _listed(image):
            crc = 0
            for start in range(record.start, record.start + record.size, _CHUNK):
                crc = crc32(image[start : min(start + _CHUNK, record.start + record.size)], crc)
            written = crc.to_bytes(4, "little")
            places = [entry + _CRC_IN_ENTRY]
            if record.size:
                places.append(record.start + record.size + _CRC_IN_DESCRIPTOR)
            for place in places:
                if image[place : place + 4] != written:
                    write(place, written)
    except (struct.error, ValueError) as error:
        msg = f"an image is no zip file of records that can be found: {error}"
        raise CheckpointCorruptError(msg) from error


def _listed(image: memoryview) -> Iterable[tuple[int, ZipRecord]]:
    """Each record, with the offset of its entry in the directory."""
    end64 = _END64.unpack_from(image, len(image) - _END.size - _LOCATOR.size - _END64.size)
    if end64[0] != b"PK\6\6":
        msg = "its end is missing"
        raise ValueError(msg)
    place = end64[-1]
    for _ in range(end64[-3]):
        magic, *_, size, _, named, extra, _, _, _, _, header = _ENTRY.unpack_from(image, place)
        if magic != b"PK\1\2":
            msg = f"no entry at {place}"
            raise ValueError(msg)
        name_at, more_at = place + _ENTRY.size, place + _ENTRY.size + named
        wide = list(struct.unpack_from(f"<{extra // 8}Q", image, more_at + _EXTRA.size))
        if size == _LIMIT:
            size, _ = wide[:2]
            del wide[:2]
        if header == _LIMIT:
            header = wide[0]
        local = _LOCAL.unpack_from(image, header)
        if local[0] != b"PK\3\4":
            msg = f"no record at {header}"
            raise ValueError(msg)
        start = header + _LOCAL.size + local[-2] + local[-1]
        if start + size > end64[-1]:
            msg = f"the record at {header} reaches into the directory"
            raise ValueError(msg)
        yield place, ZipRecord(bytes(image[name_at:more_at]), size, header, start)
        place = more_at + extra
