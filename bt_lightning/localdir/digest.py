"""Compute the XXH3-128 of a file and of each of its blocks, in one pass."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.block_digests import BlockDigests
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.localdir.safe_open import open_regular

if TYPE_CHECKING:
    from pathlib import Path

READ_BYTES = 4 * 1024 * 1024
_STRETCH_BYTES: Final = 1024 * 1024
"""Hashed as a part of the file, and then by blocks, while the CPU's cache still holds it."""


class Hasher:
    """Computes the digests of a stream of bytes that comes in pieces of any size."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._whole = xxhash.xxh3_128()
        self._block = xxhash.xxh3_128()
        self._in_block = 0
        self._digests = bytearray()
        self.size = 0

    def update(self, piece: memoryview | bytes) -> None:
        """Add the next bytes."""
        view = memoryview(piece)
        self.size += len(view)
        for start in range(0, len(view), _STRETCH_BYTES):
            stretch = view[start : start + _STRETCH_BYTES]
            self._whole.update(stretch)
            self._add_to_blocks(stretch)

    def _add_to_blocks(self, view: memoryview) -> None:
        size, begin = self._block_bytes, 0
        if self._in_block:
            begin = self._add_to_block(view[: size - self._in_block])
        end = begin + (len(view) - begin) // size * size
        for start in range(begin, end, size):
            self._digests += xxhash.xxh3_128_digest(view[start : start + size])
        self._add_to_block(view[end:])

    def _add_to_block(self, part: memoryview) -> int:
        self._block.update(part)
        self._in_block += len(part)
        if self._in_block == self._block_bytes:
            self._close_block()
        return len(part)

    def _close_block(self) -> None:
        self._digests += self._block.digest()
        self._block.reset()
        self._in_block = 0

    def entry(self, path: str) -> FileEntry:
        """The manifest entry for all bytes so far; called once, at the end."""
        if self._in_block:
            self._close_block()
        return FileEntry(
            path=path,
            size=self.size,
            xxh3_128=self._whole.hexdigest(),
            blocks=BlockDigests(bytes(self._digests)),
            block_bytes=self._block_bytes,
        )


def digest_file(file: Path, path: str, block_bytes: int = BLOCK_BYTES) -> FileEntry:
    """Read `file` once and return its manifest entry, with the path `path`."""
    hasher = Hasher(block_bytes)
    buffer = memoryview(bytearray(READ_BYTES))
    with os.fdopen(open_regular(file), "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.entry(path)
