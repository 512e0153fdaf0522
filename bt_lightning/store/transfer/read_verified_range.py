"""Read any range of a committed file from a store; every byte is verified before it is returned.

Digests cover whole blocks, so a range is extended to the blocks that it touches.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.block_digests import size_of_blocks
from bt_lightning.errors import CheckpointCorruptError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import Store

PIECE_BYTES = 16 * 1024 * 1024
"""Size of one request in bytes: a multiple of any `block_bytes`."""
_REQUESTS = 8


def read_verified_range(store: Store, base: str, entry: FileEntry, start: int, end: int) -> bytes:
    """The bytes `start` to `end` of the file `entry` of the checkpoint at the key prefix `base`.

    Both lie in the file. Large ranges are read by parallel requests.

    Raises:
        CheckpointCorruptError: the store holds other bytes than were saved.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    if start >= end:
        return b""
    first = start - start % entry.block_bytes
    last = min(entry.size, -(-end // entry.block_bytes) * entry.block_bytes)
    buffer = memoryview(bytearray(last - first))

    def fill(offset: int) -> None:
        stop = min(offset + PIECE_BYTES, last)
        _read_blocks(store, base, entry, offset, buffer[offset - first : stop - first])

    _each_piece(fill, first, last)
    return bytes(buffer[start - first : end - first])


def save_file(store: Store, base: str, entry: FileEntry, target: Path) -> None:
    """Copy one file to the new file `target`, by parallel requests; deleted if the copy fails.

    Raises:
        CheckpointCorruptError, CheckpointNotFoundError, StoreError: as `read_verified_range`.
        OSError: the disk refused.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def copy(offset: int) -> None:
        piece = memoryview(bytearray(min(PIECE_BYTES, entry.size - offset)))
        _read_blocks(store, base, entry, offset, piece)
        while piece:
            count = os.pwrite(descriptor, piece, offset)
            offset, piece = offset + count, piece[count:]

    try:
        _each_piece(copy, 0, entry.size)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _each_piece(act: Callable[[int], None], first: int, last: int) -> None:
    """Call `act` with the offset of each piece, in parallel; raise the first piece's error."""
    offsets = range(first, last, PIECE_BYTES)
    if len(offsets) <= 1:
        for offset in offsets:
            act(offset)
        return
    with ThreadPoolExecutor(min(_REQUESTS, len(offsets))) as pool:
        futures = [pool.submit(act, offset) for offset in offsets]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read_blocks(
    store: Store, base: str, entry: FileEntry, offset: int, target: memoryview
) -> None:
    """Fill `target` with whole blocks from `offset` on, and verify each."""
    key, size = f"{base}/{entry.path}", entry.block_bytes
    try:
        store.read_into(key, offset, target)
        for start in range(0, len(target), size):
            block = target[start : start + size]
            if _differs(entry, offset + start, block):
                store.read_into(key, offset + start, block)  # it may have changed in transit
                if _differs(entry, offset + start, block):
                    raise _damaged(store, base, entry, (offset + start) // size)
    except StoreError as error:
        found = store.size(key)
        if found is None or found == entry.size:
            raise
        msg = (
            f"the checkpoint {store.name}/{base} is damaged: {entry.path} has {found} bytes, its"
            f" manifest says {entry.size}"
        )
        raise CheckpointCorruptError(msg) from error


def _differs(entry: FileEntry, offset: int, block: memoryview) -> bool:
    return xxhash.xxh3_128_hexdigest(block) != entry.blocks[offset // entry.block_bytes]


def _damaged(store: Store, base: str, entry: FileEntry, block: int) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"the checkpoint {store.name}/{base} is damaged: the bytes of {entry.path} are not those"
        f" that were saved (XXH3-128 differs, {size_of_blocks(entry.block_bytes)} block {block})"
    )
