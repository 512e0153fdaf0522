"""Compute the XXH3-128 of a file and of each of its blocks, in one pass."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.manifest import BLOCK_BYTES, FileEntry

if TYPE_CHECKING:
    from pathlib import Path

READ_BYTES = 4 * 1024 * 1024


class Hasher:
    """Computes the digests of a stream of bytes that comes in pieces of any size."""

    def __init__(self) -> None:
        self._whole = xxhash.xxh3_128()
        self._block = xxhash.xxh3_128()
        self._in_block = 0
        self._blocks: list[str] = []
        self.size = 0

    def update(self, piece: memoryview | bytes) -> None:
        """Add the next bytes."""
        view = memoryview(piece)
        self._whole.update(view)
        self.size += len(view)
        while view:
            part = view[: BLOCK_BYTES - self._in_block]
            self._block.update(part)
            self._in_block += len(part)
            view = view[len(part) :]
            if self._in_block == BLOCK_BYTES:
                self._close_block()

    def _close_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
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
            blocks=tuple(self._blocks),
        )


def digest_file(file: Path, path: str) -> FileEntry:
    """Read `file` once and return its manifest entry, with the path `path`."""
    hasher = Hasher()
    buffer = memoryview(bytearray(READ_BYTES))
    with os.fdopen(open_regular(file), "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.entry(path)
