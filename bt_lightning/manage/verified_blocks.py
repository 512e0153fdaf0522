"""Ranges of a checkpoint's files by whole blocks, each compared with its digest."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_KEPT_BYTES: Final = 64 * 1024 * 1024
_REQUEST_BLOCKS: Final = 2


class VerifiedBlocks:
    """Reads ranges of a checkpoint's files by whole blocks, compared with their digests.

    The last blocks are kept, since neighbours share them. Used by several threads.
    """

    def __init__(self, reader: CheckpointReader, files: Iterable[FileEntry]) -> None:
        self.reader = reader
        self._entries = {entry.path: entry for entry in files}
        self._kept_bytes = 0
        self._kept: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def fetch(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Read the blocks of these ranges (file, start, end) in parallel, if all can be kept."""
        wanted = dict.fromkeys(
            (path, block) for path, start, end in ranges for block in _blocks(start, end)
        )
        size = sum(self._size(path, block) for path, block in wanted)
        if size <= _KEPT_BYTES:
            jobs = [
                (path, blocks)
                for path, group in itertools.groupby(wanted, key=lambda key: key[0])
                for blocks in _runs(self._missing(path, [block for _, block in group]))
            ]
            in_parallel(lambda job: self._read(*job), jobs, self.reader.connections)

    def read_into(self, path: str, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes of the file at `path` from `start` on.

        Raises:
            CheckpointCorruptError: they differ from the manifest.
            CheckpointNotFoundError: the checkpoint was deleted meanwhile.
            StoreError: the store refused.
        """
        end = start + len(target)
        for block in _blocks(start, end):
            data = self._block(path, block)
            first = max(start, block * BLOCK_BYTES)
            last = min(end, block * BLOCK_BYTES + len(data))
            if last <= first:
                msg = f"the checkpoint {self.reader.name} is damaged: {path} ends early"
                raise CheckpointCorruptError(msg)
            within = first - block * BLOCK_BYTES
            target[first - start : last - start] = data[within : within + last - first]

    def _block(self, path: str, block: int) -> memoryview:
        with self._lock:
            found = self._kept.get((path, block))
            if found is not None:
                self._kept.move_to_end((path, block))
                return found
        (found,) = self._read(path, (block,))
        return found

    def _missing(self, path: str, blocks: Sequence[int]) -> list[int]:
        with self._lock:
            return [block for block in blocks if (path, block) not in self._kept]

    def _read(self, path: str, blocks: Sequence[int]) -> list[memoryview]:
        """Read adjacent blocks, compare them, and keep them."""
        entry = self._entries[path]
        if path not in self._checked:
            self.reader.check(entry)
            self._checked.add(path)
        first = blocks[0] * BLOCK_BYTES
        parts = [memoryview(bytearray(self._size(path, block))) for block in blocks]
        if entry.blocks:
            read_verified(self.reader, entry, first, parts)
        else:  # no worker has committed it
            self.reader.read_into(entry, first, parts)
        with self._lock:
            for block, part in zip(blocks, parts, strict=True):
                if (path, block) not in self._kept:
                    self._kept_bytes += len(part)
                self._kept[path, block] = part
                self._kept.move_to_end((path, block))
            while self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return parts

    def _size(self, path: str, block: int) -> int:
        return max(0, min(BLOCK_BYTES, self._entries[path].size - block * BLOCK_BYTES))


def _blocks(start: int, end: int) -> range:
    return range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))


def _runs(blocks: Sequence[int]) -> Iterator[list[int]]:
    """Adjacent blocks, a few at a time."""
    run: list[int] = []
    for block in blocks:
        if run and (block != run[-1] + 1 or len(run) == _REQUEST_BLOCKS):
            yield run
            run = []
        run.append(block)
    if run:
        yield run
