"""Read the files of one checkpoint in a local directory, past the page cache where that pays."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING

from typing_extensions import Self

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.list_and_verify_checkpoints import NO_FILE, is_unchanged, read_manifest
from bt_lightning.localdir.open_files import OpenFiles
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.localdir.sidecars import content_directory
from bt_lightning.store.transfer.block_verifier import cut
from bt_lightning.store.transfer.checkpoint_reader import NoCopy
from bt_lightning.store.transfer.direct_reads import (
    LEAST_BYTES,
    PAGE,
    NoDirectReads,
    is_cached,
    open_direct,
    read_direct,
)
from bt_lightning.store.transfer.parallel_reads import Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import ReadProgress

_MOST_READERS = 8
_MOST_TARGETS = 1024
"""What preadv(2) takes at once (IOV_MAX)."""
_ALONE_BYTES = 8 * 1024 * 1024
"""A local checkpoint of up to this size is read by one thread: starting others takes longer."""


class FilesReader(NoCopy):
    """Reads files of a local directory. Use it in a `with` block: it keeps them open."""

    piece_bytes = BLOCK_BYTES  # small: it is hashed while the CPU's cache still holds it
    gap_bytes = 64 * 1024  # the kernel reads as much ahead

    def __init__(self, content: Path, manifest: Manifest, *, fills_cache: bool = False) -> None:
        """`manifest` says which files of the directory `content`, and what they hold.

        `fills_cache`: all is read through the page cache, for those that read it next.
        """
        self._content, self._fills_cache = content, fills_cache
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
        if self._fills_cache or entry.path in self._only_cached:
            return False
        return size >= LEAST_BYTES and not offset % PAGE

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

    def __init__(self, path: Path, *, fills_cache: bool = False) -> None:
        """Read the manifest; `fills_cache` as of `FilesReader`.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError: the manifest is damaged.
        """
        super().__init__(content_directory(path), read_manifest(path), fills_cache=fills_cache)
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
