"""Where the bytes of one committed checkpoint are read from, and how they are verified.

Every range is compared with the manifest's XXH3-128 of each of its blocks when it arrives. The
digest of the whole file is not computed again: its blocks cover every byte of it once, in order
(`Manifest.from_bytes` counts them), so equal blocks are an equal file. Only a manifest that
contradicts itself could differ there, and its own digest speaks for that it was written so.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Protocol

import xxhash
from typing_extensions import Self

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.layout import MANIFEST, under
from bt_lightning.localdir.local_checkpoints import (
    NO_FILE,
    damaged_blocks,
    is_unchanged,
    read_manifest,
)
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.manifest import BLOCK_BYTES, Manifest
from bt_lightning.store.transfer.file_source import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.interface import ReadProgress, Store

_TRIES = 3
"""Times that a block which arrived damaged is asked for in all."""
_CONNECTIONS = 6
_MOST_READERS = 8
_MOST_TARGETS = 1024
"""What preadv(2) takes at once (IOV_MAX)."""
_ALONE_BYTES = 8 * 1024 * 1024
"""A local checkpoint up to this size is read before a second thread would have started."""


class CheckpointReader(Protocol):
    """One committed checkpoint, wherever it lies. Read by several threads at once."""

    @property
    def name(self) -> str:
        """The directory or URL, for messages."""

    @property
    def manifest(self) -> Manifest:
        """What is committed there."""

    @property
    def piece_bytes(self) -> int:
        """Bytes that are best asked for at a time: a multiple of `BLOCK_BYTES`."""

    @property
    def connections(self) -> int:
        """Threads that are best used."""

    def check(self, entry: FileEntry) -> None:
        """Raise `CheckpointCorruptError` or `CheckpointNotFoundError` unless the size is right."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Fill `targets`, one after the other, with the file's bytes from `offset` on, unverified.

        `on_progress` is as in `Store.read_into`.

        Raises `CheckpointCorruptError` or `StoreError`.
        """


def read_verified(
    place: CheckpointReader, entry: FileEntry, offset: int, targets: Sequence[memoryview]
) -> None:
    """Fill `targets`, together whole blocks, and compare each; ask again for those that differ.

    Raises:
        CheckpointCorruptError: a block keeps differing; what `targets` hold is of no use.
        StoreError: the store refused.
    """
    arrival = _Arrival(entry, offset, targets)
    place.read_into(entry, offset, targets, arrival)
    wrong = arrival.wrong_blocks()
    for _ in range(_TRIES - 1):
        again, wrong = wrong, []
        for block in again:
            start = block * BLOCK_BYTES
            parts = cut(targets, start - offset, BLOCK_BYTES)
            place.read_into(entry, start, parts)
            wrong += _Arrival(entry, start, parts).wrong_blocks()
    if wrong:
        raise CheckpointCorruptError(damaged_blocks(place.name, entry.path, wrong))


class _Arrival:
    """The blocks of one range, each compared while the processor's cache still holds it."""

    def __init__(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> None:
        self._range = entry, offset, targets
        self(0)

    def __call__(self, filled: int) -> None:
        """So many bytes have arrived; 0 when they will be written again."""
        if not filled:
            self._compared = 0
            self._wrong: list[int] = []
            self._rest = _differences(*self._range)
        while self._compared + BLOCK_BYTES <= filled:
            self._wrong += next(self._rest)
            self._compared += BLOCK_BYTES

    def wrong_blocks(self) -> list[int]:
        """The numbers of the blocks that differ; call it when all have arrived."""
        for wrong in self._rest:
            self._wrong += wrong
        return self._wrong


def _differences(
    entry: FileEntry, offset: int, targets: Sequence[memoryview]
) -> Iterator[list[int]]:
    """For each block in turn, which is looked at only then: its number if it differs."""
    block, left, hasher = offset // BLOCK_BYTES, BLOCK_BYTES, xxhash.xxh3_128()
    for target in targets:
        rest = target
        while rest:
            part, rest = rest[:left], rest[left:]
            hasher.update(part)
            left -= len(part)
            if left:
                continue
            yield [block] if hasher.hexdigest() != entry.blocks[block] else []
            block, left = block + 1, BLOCK_BYTES
            hasher.reset()
    if left < BLOCK_BYTES:
        yield [block] if hasher.hexdigest() != entry.blocks[block] else []


def cut(targets: Sequence[memoryview], skip: int, size: int) -> list[memoryview]:
    """`size` bytes of `targets` after the first `skip`, or as many as there are."""
    found = []
    for target in targets:
        part = target[skip : skip + size]
        skip = max(0, skip - len(target))
        size -= len(part)
        if part:
            found.append(part)
    return found


def is_block(entry: FileEntry, block: int, data: memoryview) -> bool:
    """Whether `data` are the bytes of that block of the file."""
    return bool(xxhash.xxh3_128_hexdigest(data) == entry.blocks[block])


class StoreReader:
    """A checkpoint in a store."""

    piece_bytes = PIECE_BYTES
    connections = _CONNECTIONS

    def __init__(self, store: Store, prefix: str, folder: str, *, listed: bool = True) -> None:
        """Read the manifest and list the folder, unless the store lists nothing: not `listed`.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError: the manifest is damaged.
            StoreError: the store refused.
        """
        self._store = store
        self._base = under(prefix, folder)
        data = store.read(f"{self._base}/{MANIFEST}")
        if data is None:
            msg = f"no committed checkpoint at {self.name}"
            raise CheckpointNotFoundError(msg)
        self.manifest = Manifest.from_bytes(data, self.name)
        self.manifest_bytes = data
        self._sizes: dict[str, int] | None = None
        if listed:
            self._sizes = {info.key: info.size for info in store.list(self._base)}

    @property
    def name(self) -> str:
        """The folder's URL, without secrets."""
        return f"{self._store.name}/{self._base}"

    def check(self, entry: FileEntry) -> None:
        """Compare with the size that was listed, or is asked for."""
        key = f"{self._base}/{entry.path}"
        size = self._store.size(key) if self._sizes is None else self._sizes.get(key)
        if size is None:
            msg = f"there is no {self.name}/{entry.path}, which its manifest names"
            raise CheckpointNotFoundError(msg)
        if size != entry.size:
            msg = (
                f"the checkpoint {self.name} is damaged: {entry.path} has {size} bytes, its"
                f" manifest says {entry.size}"
            )
            raise CheckpointCorruptError(msg)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Ask the store once."""
        self._store.read_into(
            f"{self._base}/{entry.path}", offset, *targets, on_progress=on_progress
        )


class DirectoryReader:
    """A committed directory on this disk. Use it in a `with` block: it keeps files open."""

    piece_bytes = BLOCK_BYTES  # small: it is hashed while the processor's cache still holds it

    def __init__(self, path: Path) -> None:
        """Read the manifest.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError: the manifest is damaged.
        """
        self._path = path
        self.manifest = read_manifest(path)
        many = self.manifest.size > _ALONE_BYTES
        self.connections = min(_MOST_READERS, len(os.sched_getaffinity(0))) if many else 1
        self._files: dict[str, int] = {}
        self._held: int | None = None
        self._opening = threading.Lock()

    @property
    def name(self) -> str:
        """The directory."""
        return str(self._path)

    def check(self, entry: FileEntry) -> None:
        """Open the file; a pipe or a device is none, and not read."""
        self._file(entry)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,  # noqa: ARG002 - what is read is one block
    ) -> None:
        """Read the file at that place."""
        file, left = self._file(entry), list(targets)
        while left:
            count = os.preadv(file, left[:_MOST_TARGETS], offset)
            if not count:
                msg = f"the checkpoint {self.name} is damaged: {entry.path} ends early"
                raise CheckpointCorruptError(msg)
            offset += count
            left = cut(left, count, entry.size)

    def _file(self, entry: FileEntry) -> int:
        with self._opening:
            if self._held is None:
                self._held = self._hold()
            if entry.path not in self._files:
                self._files[entry.path] = self._open(entry)
            return self._files[entry.path]

    def _hold(self) -> int:
        """Keep the directory from making room for others while it is read."""
        held = hold_for_reading(self._path)
        if held is not None:
            if is_unchanged(self._path, self.manifest):
                return held
            os.close(held)
        msg = f"the checkpoint {self.name} was replaced or deleted before it was read"
        raise CheckpointNotFoundError(msg)

    def _open(self, entry: FileEntry) -> int:
        try:
            file = os.open(self._path / entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            msg = f"the checkpoint {self.name} is damaged: its file {entry.path} is missing"
            raise CheckpointCorruptError(msg) from error
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size == entry.size:
            return file
        os.close(file)
        msg = (
            f"the checkpoint {self.name} is damaged: {entry.path} is no file of {entry.size}"
            f" bytes, as its manifest says, but of {status.st_size}"
        )
        raise CheckpointCorruptError(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
        if self._held is not None:
            os.close(self._held)
            self._held = None
