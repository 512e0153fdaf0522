"""Sources of uploads: a committed file, verified block by block, and helpers for all sources."""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Protocol

import xxhash
from typing_extensions import Self

from bt_lightning.block_digests import size_of_blocks
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.mapped_file import MappedFile
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.store.interface import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import Lent

PIECE_BYTES = 32 * 1024 * 1024
"""Default size of a piece in memory, in bytes: a multiple of `BLOCK_BYTES`."""


class DescribedSource(Source, Protocol):
    """A source of a file with an entry in a manifest."""

    @property
    def entry(self) -> FileEntry:
        """The file's entry in the manifest."""


class HeldBytes:
    """A `Lent` over bytes whose memory is not reclaimed."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.size = len(data)

    @contextlib.contextmanager
    def view(self, start: int, stop: int) -> Iterator[memoryview]:
        """A slice of the bytes."""
        yield self._data[start:stop]


class BufferedSource(abc.ABC):
    """A source that implements `lend` by `hold`: its memory is not reclaimed between views."""

    @abc.abstractmethod
    def hold(self, offset: int, size: int) -> contextlib.AbstractContextManager[memoryview]:
        """As in `Source`."""

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[Lent]:
        """Hold the bytes while they are lent."""
        with self.hold(offset, size) as data:
            yield HeldBytes(data)


class FileSource:
    """A file of a committed checkpoint. Use it in a `with` block, or close it.

    The file is mapped. Where that cannot be done safely, each thread has one buffer, so it may
    hold, or have lent, one range at a time.
    """

    part_bytes = PIECE_BYTES

    def __init__(self, file: Path, entry: FileEntry, *, shared: bool = False) -> None:
        """Of a `shared` file, which other programs may truncate, no page is mapped."""
        self.entry = entry
        self._path = str(file)
        self._descriptor = open_regular(file)
        self._mapped: MappedFile | None = None
        if os.fstat(self._descriptor).st_size == entry.size and not shared:
            with contextlib.suppress(OSError):  # then it is read into a buffer
                self._mapped = MappedFile(self._descriptor, entry.size)
        self._local = threading.local()

    @property
    def size(self) -> int:
        """Bytes, as the manifest says."""
        return self.entry.size

    @property
    def digest(self) -> str:
        """XXH3-128, as the manifest says."""
        return self.entry.xxh3_128

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Read the bytes and verify each block."""
        if self._mapped is not None:
            self._mapped.prefetch(offset, size)
        view = self._from_map(offset, size)
        if view is None:
            view = self._from_disk(offset, size)
        self._check(view, offset)
        try:
            yield view
        finally:
            if self._mapped is not None:
                self._mapped.release(offset, size)

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[Lent]:
        """The bytes block by block; each is verified when it is first viewed."""
        if self._mapped is not None:
            self._mapped.prefetch(offset, size)
        try:
            yield _LentFile(self, offset, size)
        finally:
            if self._mapped is not None:
                self._mapped.release(offset, size)

    def block(self, offset: int) -> tuple[memoryview, bool]:
        """The verified `BLOCK_BYTES` at `offset`; whether they stay valid when others are read."""
        size = min(BLOCK_BYTES, self.size - offset)
        view = self._from_map(offset, size)
        mapped = view is not None
        if view is None:
            view = self._from_disk(offset, size)
        self._check(view, offset)
        return view, mapped

    def _from_map(self, offset: int, size: int) -> memoryview | None:
        if self._mapped is not None:
            with contextlib.suppress(OSError):  # the read from disk raises the error
                return self._mapped.read(offset, size)
        return None

    def _from_disk(self, offset: int, size: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(size)
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if not count:
                msg = f"{self._path} is damaged: it ends at {offset + done} of {self.size} bytes"
                raise CheckpointCorruptError(msg)
            done += count
        return view

    def _check(self, view: memoryview, offset: int) -> None:
        size, blocks = self.entry.block_bytes, self.entry.blocks
        for start in range(0, len(view), size):
            block = (offset + start) // size
            if xxhash.xxh3_128_hexdigest(view[start : start + size]) != blocks[block]:
                msg = (
                    f"{self._path} is damaged: its bytes are not those that were saved"
                    f" (XXH3-128 differs, {size_of_blocks(size)} block {block})"
                )
                raise CheckpointCorruptError(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._mapped is not None:
            self._mapped.close()
        os.close(self._descriptor)


class _LentFile:
    """A range of a file, lent to one thread."""

    def __init__(self, source: FileSource, offset: int, size: int) -> None:
        self.size = size
        self._source = source
        self._offset = offset
        self._mapped: dict[int, memoryview] = {}
        self._buffered: tuple[int, memoryview] | None = None

    @contextlib.contextmanager
    def view(self, start: int, stop: int) -> Iterator[memoryview]:
        first = start - start % BLOCK_BYTES
        yield self._block(first)[start - first : stop - first]

    def _block(self, first: int) -> memoryview:
        if first in self._mapped:
            return self._mapped[first]
        if self._buffered is None or self._buffered[0] != first:
            view, mapped = self._source.block(self._offset + first)
            if mapped:
                self._mapped[first] = view
                return view
            self._buffered = first, view
        return self._buffered[1]


def pieces(source: Source) -> Iterator[memoryview]:
    """Yield all bytes of `source` in order; each piece is valid until the next is requested."""
    for offset in range(0, source.size, source.part_bytes):
        with source.hold(offset, min(source.part_bytes, source.size - offset)) as piece:
            yield piece


def same_ranges(entry: FileEntry, other: FileEntry) -> tuple[tuple[int, int], ...]:
    """(offset, size) in bytes of the `BLOCK_BYTES` that two files share at the same offsets.

    Compared by digest; ascending; adjacent ones are joined.
    """
    if (entry.size, entry.xxh3_128) == (other.size, other.xxh3_128):
        return ((0, entry.size),) if entry.size else ()
    if entry.block_bytes != other.block_bytes:
        return ()
    ranges: list[tuple[int, int]] = []
    for offset in range(0, entry.size, BLOCK_BYTES):
        size = min(BLOCK_BYTES, entry.size - offset)
        first, last = offset // entry.block_bytes, -(-(offset + size) // entry.block_bytes)
        one, two = entry.blocks[first:last], other.blocks[first:last]
        if one != two or offset + size > other.size:
            continue
        if ranges and sum(ranges[-1]) == offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
        else:
            ranges.append((offset, size))
    return tuple(ranges)


def covers_all(source: Source, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether `ranges` of a `Reuse` cover every byte of `source`."""
    return ranges == ((0, source.size),)
