"""Read verified bytes of one committed checkpoint, from a store or from a local directory.

Each block of a range is compared with its XXH3-128 in the manifest when it arrives. The digest of
the whole file is not computed again: the blocks cover every byte once, in order
(`Manifest.from_bytes` checks it), so equal blocks mean an equal file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING, Protocol

from typing_extensions import Self

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.list_and_verify_checkpoints import (
    NO_FILE,
    damaged_blocks,
    is_unchanged,
    read_manifest,
)
from bt_lightning.localdir.open_files import OpenFiles
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.localdir.sidecars import content_directory
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, under
from bt_lightning.store.transfer.block_verifier import BlockVerifier, cut, wrong_blocks
from bt_lightning.store.transfer.direct_reads import (
    LEAST_BYTES,
    PAGE,
    NoDirectReads,
    is_cached,
    open_direct,
    read_direct,
)
from bt_lightning.store.transfer.file_source import PIECE_BYTES
from bt_lightning.store.transfer.fresh_memory import give_pages
from bt_lightning.store.transfer.parallel_reads import Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import ReadProgress, Store

_TRIES = 3
"""How often a block is requested in all before it counts as damaged."""
_CONNECTIONS = 6
_MOST_READERS = 8
_MOST_TARGETS = 1024
"""What preadv(2) takes at once (IOV_MAX)."""
_ALONE_BYTES = 8 * 1024 * 1024
"""A local checkpoint of up to this size is read by one thread: starting others takes longer."""


class CheckpointReader(Protocol):
    """One committed checkpoint in a store or a directory. Used by several threads at once."""

    @property
    def name(self) -> str:
        """The directory or URL, for messages."""

    @property
    def manifest(self) -> Manifest:
        """The checkpoint's manifest."""

    @property
    def piece_bytes(self) -> int:
        """The best size of a read, in bytes: a multiple of `BLOCK_BYTES`."""

    @property
    def gap_bytes(self) -> int:
        """Up to so many bytes that nobody wants are read to save another read."""

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""

    def check(self, entry: FileEntry) -> None:
        """Raise `CheckpointCorruptError` or `CheckpointNotFoundError` unless the size is right."""

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """These bytes of the file are read soon: where it helps, they are fetched until then."""

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
    reader: CheckpointReader, entry: FileEntry, offset: int, targets: Sequence[memoryview]
) -> None:
    """Fill `targets`, together whole blocks, and verify each; read blocks that differ again.

    Raises:
        CheckpointCorruptError: a block differs after three reads; `targets` hold garbage then.
        StoreError: the store refused.
    """
    give_pages(targets)
    verifier = BlockVerifier(entry, offset, targets)
    reader.read_into(entry, offset, targets, verifier)
    wrong = verifier.wrong_blocks()
    for _ in range(_TRIES - 1):
        again, wrong = wrong, []
        for block in again:
            start = block * entry.block_bytes
            parts = cut(targets, start - offset, entry.block_bytes)
            reader.read_into(entry, start, parts)
            wrong += wrong_blocks(entry, start, parts)
    if wrong:
        raise CheckpointCorruptError(damaged_blocks(reader.name, entry, wrong))


class StoreReader:
    """Reads a checkpoint in a store."""

    piece_bytes = PIECE_BYTES
    gap_bytes = 1024 * 1024  # arrives in less time than the answer to another request
    connections = _CONNECTIONS

    def __init__(self, store: Store, prefix: str, folder: str, *, listed: bool = True) -> None:
        """Read the manifest, and list the folder unless `listed` is false: a store may not list.

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
        """Compare the size in the manifest with the object's."""
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

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """A store is asked once."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Read the range in one request."""
        self._store.read_into(
            f"{self._base}/{entry.path}", offset, *targets, on_progress=on_progress
        )


class FilesReader:
    """Reads files of a local directory. Use it in a `with` block: it keeps them open."""

    piece_bytes = BLOCK_BYTES  # small: it is hashed while the CPU's cache still holds it
    gap_bytes = 64 * 1024  # the kernel reads as much ahead

    def __init__(self, content: Path, manifest: Manifest) -> None:
        """`manifest` says which files of the directory `content`, and what they hold."""
        self._content = content
        self.manifest = manifest
        many = self.manifest.size > _ALONE_BYTES
        self.connections = min(_MOST_READERS, len(os.sched_getaffinity(0))) if many else 1
        self._files, self._direct = OpenFiles(), OpenFiles()
        self._only_cached: set[str] = set()
        """Paths of files that cannot be read past the page cache."""
        self._scratch = Scratch()
        self._held: int | None = None
        self._at: int | None = None  # the directory itself: another one may have its name by now
        self._opening = threading.Lock()

    @property
    def name(self) -> str:
        """The directory."""
        return str(self._content)

    def check(self, entry: FileEntry) -> None:
        """Open the file and compare its size; a pipe or a device is never read."""
        with self._file(entry):
            pass

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """Let the kernel read bytes into its cache, beside what this process does.

        Not those that are read past it.
        """
        with self._file(entry) as file, contextlib.suppress(OSError):  # a hint
            if not self._reads_past_cache(entry, offset, size):
                os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,  # noqa: ARG002 - one block is read at a time
    ) -> None:
        """Read the file from `offset` on, past the page cache where that is not to be had there."""
        left = list(targets)
        with self._file(entry) as file:
            size = sum(map(len, left))
            if self._reads_past_cache(entry, offset, size) and not is_cached(file, offset, size):
                count = self._read_direct(file, entry, offset, left)
                offset, left = offset + count, cut(left, count, size)
            while left:
                count = os.preadv(file, left[:_MOST_TARGETS], offset)
                if not count:
                    msg = f"the checkpoint {self.name} is damaged: {entry.path} ends early"
                    raise CheckpointCorruptError(msg)
                offset += count
                left = cut(left, count, entry.size)

    def _reads_past_cache(self, entry: FileEntry, offset: int, size: int) -> bool:
        large = size >= LEAST_BYTES and not offset % PAGE
        return large and entry.path not in self._only_cached

    def _read_direct(
        self, file: int, entry: FileEntry, offset: int, targets: Sequence[memoryview]
    ) -> int:
        """Fill `targets`; return the number of bytes, 0 if they are to come through the cache."""
        buffer = self._scratch.view(-(-sum(map(len, targets)) // PAGE) * PAGE)
        try:
            with self._direct.use(entry.path, lambda: open_direct(file)) as direct:
                count = read_direct(direct, offset, targets, buffer)
        except NoDirectReads:
            self._only_cached.add(entry.path)
            return 0
        return count

    def _file(self, entry: FileEntry) -> contextlib.AbstractContextManager[int]:
        """The descriptor of a file."""
        with self._opening:
            if self._held is None:
                self._held = self._hold()
        return self._files.use(entry.path, lambda: self._open(entry))

    def _hold(self) -> int | None:
        """Keep the directory from being evicted while it is read, if it could be."""
        return None

    def _open(self, entry: FileEntry) -> int:
        try:
            place = self._content / entry.path if self._at is None else entry.path
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(place, flags, dir_fd=self._at)
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
        self._files.close()
        self._direct.close()
        if self._held is not None:
            os.close(self._held)
            self._held = None


class DirectoryReader(FilesReader):
    """Reads a committed local directory, or what a sidecar describes."""

    def __init__(self, path: Path) -> None:
        """Read the manifest.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError: the manifest is damaged.
        """
        super().__init__(content_directory(path), read_manifest(path))
        self._path = path

    def _hold(self) -> int | None:
        held = hold_for_reading(self._path)
        if held is not None:
            if is_unchanged(self._path, self.manifest):
                self._at = held if self._content == self._path else None
                return held
            os.close(held)
        msg = f"the checkpoint {self.name} was replaced or deleted before it was read"
        raise CheckpointNotFoundError(msg)

    def _open(self, entry: FileEntry) -> int:
        try:
            return super()._open(entry)
        except CheckpointCorruptError as error:
            if is_unchanged(self._path, self.manifest):
                raise
            msg = f"the checkpoint {self.name} was replaced or deleted while it was read"
            raise CheckpointNotFoundError(msg) from error
