"""Compares the blocks of a range of a file with their digests in the manifest. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

from bt_lightning.block_digests import DIGEST_BYTES, BlockDigests

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bt_lightning.file_entries import FileEntry


class BlockVerifier:
    """Verifies the blocks of one range as they arrive, while the CPU's cache still holds them."""

    def __init__(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> None:
        """`targets` are together whole blocks of the file from `offset` on."""
        self._range = entry, offset, targets
        self(0)

    def __call__(self, filled: int) -> None:
        """`filled` bytes have arrived; 0 when they will be written again."""
        size = self._range[0].block_bytes
        if not filled:
            self._compared = 0
            self._wrong: list[int] = []
            self._rest = _differences(*self._range)
        while self._compared + size <= filled:
            self._wrong += next(self._rest)
            self._compared += size

    def wrong_blocks(self) -> list[int]:
        """Numbers of the blocks that differ; called when all bytes have arrived."""
        for wrong in self._rest:
            self._wrong += wrong
        return self._wrong


def wrong_blocks(entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> list[int]:
    """Numbers of the blocks that differ in `targets`, together whole blocks from `offset` on."""
    return [block for found in _differences(entry, offset, targets) for block in found]


def _differences(
    entry: FileEntry, offset: int, targets: Sequence[memoryview]
) -> Iterator[list[int]]:
    """Yield for each block in turn, which is hashed only then: its number if it differs."""
    size = entry.block_bytes
    block, left, hasher = offset // size, size, xxhash.xxh3_128()
    expected = _expected(entry, block, -(-sum(map(len, targets)) // size))
    for target in targets:
        at, end = 0, len(target)
        while at < end:
            part = target[at : at + left]
            at += len(part)
            if len(part) == size:  # all of it lies in one place
                found = xxhash.xxh3_128_digest(part)
            else:
                hasher.update(part)
                left -= len(part)
                if left:
                    continue
                found, left = hasher.digest(), size
                hasher.reset()
            yield [] if found == next(expected) else [block]
            block += 1
    if left < size:
        yield [] if hasher.digest() == next(expected) else [block]


def _expected(entry: FileEntry, first: int, count: int) -> Iterator[bytes]:
    """The digests of so many blocks of a file."""
    blocks = entry.blocks
    if isinstance(blocks, BlockDigests):
        data = blocks.part(first, first + count)
    else:
        data = bytes.fromhex("".join(blocks[first : first + count]))
    return (data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))


def cut(targets: Sequence[memoryview], skip: int, size: int) -> list[memoryview]:
    """The views of `size` bytes of `targets` after the first `skip`, or of as many as there are."""
    found = []
    for target in targets:
        part = target[skip : skip + size]
        skip = max(0, skip - len(target))
        size -= len(part)
        if part:
            found.append(part)
    return found
