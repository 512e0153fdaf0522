"""Lays out a state as the zip file that `torch.save` writes.

The storages lie where they did at the save before, also if `data.pkl` has another size: the padding
in front of the first one makes up for it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import torch
import xxhash

from bt_lightning.snapshot.safetensors_layout import FilePlan, host_tensor, tensor_bytes
from bt_lightning.snapshot.state_pickle import storage_name
from bt_lightning.zip_layout import ZipRecord, directory, place_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DATA: Final = "data.pkl"
_ID: Final = ".data/serialization_id"
_ID_DIGITS: Final = 40
_ALIGNMENT: Final = ".storage_alignment"
_DEFAULT_ALIGNMENT: Final = 64
_SPARE: Final = 512
"""Bytes that `data.pkl` may grow by."""
_PAGE: Final = 4096


@dataclass(frozen=True)
class _Frame:
    """The records that `torch.save` of this version adds: name -> content."""

    before: dict[str, bytes]
    """Between `data.pkl` and the storages."""
    after: dict[str, bytes]
    """Behind the storages."""
    alignment: int
    """Bytes: each record begins at a multiple of it."""


@cache
def _frame() -> _Frame:
    buffer = io.BytesIO()
    torch.save(torch.zeros(1, device="cpu"), buffer)
    with zipfile.ZipFile(buffer) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    names = list(records)
    first = names.index(storage_name(0))
    before = {name: records[name] for name in names[:first] if name != _DATA}
    after = {name: records[name] for name in names[first + 1 :]}
    return _Frame(before, after, int(before.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)))


@dataclass(frozen=True, eq=False)
class TorchLayout:
    """The places of the records of one file, for any `data.pkl` that is not much larger."""

    archive: str
    """The folder of all records inside the file."""
    storages: tuple[ZipRecord, ...]
    """Those from the second on, and the first, whose header moves with the size of `data.pkl`."""
    after: tuple[ZipRecord, ...]
    contents: dict[str, bytes]
    """Of the records in `after`."""

    @property
    def listed(self) -> int:
        """Offset of the directory."""
        return self._fixed[-1].end

    @property
    def _fixed(self) -> tuple[ZipRecord, ...]:
        return (*self.storages, *self.after)

    @cached_property
    def plan(self) -> FilePlan:
        """The offsets of the storages, and the bytes around them but for `written`; no CRC yet."""
        records, contents = self._fixed, [b""] * len(self.storages) + list(self.contents.values())
        gaps = []
        for record, following, content in zip(records, records[1:], contents[1:], strict=False):
            gaps.append(
                (record.start + record.size, record.descriptor() + following.local_header + content)
            )
        last = records[-1]
        entries = [record.entry() for record in self._head(b"")[0]]
        skipped = sum(map(len, entries))
        end = directory([*entries, *(record.entry() for record in records[1:])], self.listed)
        gaps.append((last.start + last.size, last.descriptor()))
        gaps.append((self.listed + skipped, end[skipped:]))
        offsets = {
            storage_name(number): record.start for number, record in enumerate(self.storages)
        }
        return FilePlan(b"", offsets, self.listed + len(end), tuple(gaps))

    def written(self, data: bytes) -> tuple[tuple[int, bytes], ...] | None:
        """Offset and bytes of what depends on `data.pkl`; None if there is no room for `data`."""
        records, contents = self._head(data)
        if not records[-1].is_well_placed:
            return None
        entries = b"".join(record.entry() for record in records)
        return (0, b"".join(_filled(records, contents))), (self.listed, entries)

    def _head(self, data: bytes) -> tuple[list[ZipRecord], list[bytes]]:
        """The records before the first storage, and that; and the contents of those before it."""
        frame = _frame()
        contents = {_DATA: data, **frame.before}
        records = place_records(_sizes(self.archive, contents), frame.alignment)
        first = replace(self.storages[0], header=records[-1].end)
        return [*records, first], list(contents.values())

    def pieces(
        self, data: bytes, tensors: Mapping[str, torch.Tensor]
    ) -> Iterator[memoryview | bytes]:
        """The bytes of the file in order, with their CRC, copied to the host one by one."""
        head, contents = self._head(data)
        records, crcs = [*head, *self._fixed[1:]], [zlib.crc32(content) for content in contents]
        for record, content, crc in zip(head[:-1], contents, crcs, strict=True):
            yield record.local_header + content + record.descriptor(crc)
        for number, record in enumerate(records[len(contents) : -len(self.after)]):
            host = host_tensor(tensors[storage_name(number)])  # must outlive the yielded view
            view = tensor_bytes(host)
            crcs.append(zlib.crc32(view))
            yield record.local_header
            yield view
            yield record.descriptor(crcs[-1])
        for record, content in zip(self.after, self.contents.values(), strict=True):
            crcs.append(zlib.crc32(content))
            yield record.local_header + content + record.descriptor(crcs[-1])
        entries = [record.entry(crc) for record, crc in zip(records, crcs, strict=True)]
        yield directory(entries, self.listed)


def lay_out_storages(path: str, data: bytes, sizes: Sequence[int]) -> TorchLayout:
    """Lay out the file at `path` for a `data.pkl` of about this size and storages of these.

    Sizes are in bytes; there is at least one storage.
    """
    frame, archive = _frame(), archive_name(path)
    names = _sizes(archive, {storage_name(number): b"" for number in range(len(sizes))})
    named = [(name, size) for (name, _), size in zip(names, sizes, strict=True)]
    small = _sizes(archive, {_DATA: data, **frame.before})
    header = place_records(small, frame.alignment)[-1].end
    first, *_ = place_records(named[:1], math.lcm(_PAGE, frame.alignment), header + _SPARE)
    storages = [first, *place_records(named[1:], frame.alignment, first.end)]
    digits = int(xxhash.xxh3_128_hexdigest(repr((archive, sizes)).encode()), 16)
    contents = {**frame.after}
    if _ID in contents:
        contents[_ID] = f"{digits:0{_ID_DIGITS}d}"[-_ID_DIGITS:].encode()
    after = place_records(_sizes(archive, contents), frame.alignment, storages[-1].end)
    return TorchLayout(archive, tuple(storages), tuple(after), contents)


def without_storages(path: str, data: bytes) -> bytes:
    """The bytes of the file at `path` of a state without tensors."""
    frame = _frame()
    contents = {_DATA: data, **frame.before, **frame.after}
    records = place_records(_sizes(archive_name(path), contents), frame.alignment)
    crcs = [zlib.crc32(content) for content in contents.values()]
    parts = [
        record.local_header + content + record.descriptor(crc)
        for record, content, crc in zip(records, contents.values(), crcs, strict=True)
    ]
    entries = [record.entry(crc) for record, crc in zip(records, crcs, strict=True)]
    return b"".join((*parts, directory(entries, records[-1].end)))


def archive_name(path: str) -> str:
    """The folder of all records inside the file at `path`, as torch derives it from the name."""
    name = PurePosixPath(path).name
    stem = name.rpartition(".")[0] if "." in name else name
    return stem if stem and stem.isascii() else "archive"


def _sizes(archive: str, contents: Mapping[str, bytes]) -> list[tuple[bytes, int]]:
    return [(f"{archive}/{name}".encode(), len(content)) for name, content in contents.items()]


def _filled(records: Sequence[ZipRecord], contents: Sequence[bytes]) -> Iterator[bytes]:
    """The bytes of records without CRC, up to where those of the last begin."""
    for record, content in zip(records, contents, strict=False):
        yield record.local_header
        yield content
        yield record.descriptor()
    yield records[-1].local_header
