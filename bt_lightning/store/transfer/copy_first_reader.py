"""Read a checkpoint from a copy that is nearer than it, where that has its files.

The copy is a cache that nobody needs to trust: `read_verified` compares each block of it, and asks
the checkpoint itself for one that differs. Copies are the files that this node wrote of a sharded
checkpoint in the store, and the memory of a killed run's worker.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Protocol

from typing_extensions import Self

from bt_lightning.errors import CheckpointError
from bt_lightning.human_units import human_size
from bt_lightning.localdir.kept_parts import find_kept_part
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.store.transfer.files_reader import FilesReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import ReadProgress
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

log = logging.getLogger(__name__)


class NearCopy(Protocol):
    """Some files of one checkpoint. Used by several threads at once."""

    @property
    def name(self) -> str:
        """What it is, for messages."""

    def has(self, entry: FileEntry) -> bool:
        """Whether it seems to have a file."""

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """As `CheckpointReader.expect`; for a file that it has."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """As `CheckpointReader.read_into`; raises `CheckpointError` or `OSError`."""

    def close(self) -> None:
        """Let it go; may be called again."""


class CopyFirstReader:
    """A `CheckpointReader` over a copy and another reader, which it owns.

    Use it in a `with` block, or let it go: the copy is closed with it. Used by several threads.
    """

    def __init__(self, whole: CheckpointReader, copy: NearCopy) -> None:
        """`whole` reads the checkpoint itself."""
        self._whole, self._copy = whole, copy
        self._closed = False
        self._changed = threading.Lock()
        self._lost: set[str] = set()
        """Paths of files that the copy could not read after all."""
        self.copy_bytes = self.whole_bytes = 0
        """How many bytes came from where."""

    @property
    def name(self) -> str:
        """The checkpoint, for messages."""
        return self._whole.name

    @property
    def manifest(self) -> Manifest:
        """The checkpoint's manifest."""
        return self._whole.manifest

    @property
    def piece_bytes(self) -> int:
        """The best size of a read, in bytes."""
        return self._whole.piece_bytes

    @property
    def gap_bytes(self) -> int:
        """What is read to save another read, at most, in bytes."""
        return self._whole.gap_bytes

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""
        return self._whole.connections

    def check(self, entry: FileEntry) -> None:
        """As `CheckpointReader.check`: what the copy has is not asked for."""
        if not self._has(entry):
            self._whole.check(entry)

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """As `CheckpointReader.expect`, of the copy where it has the file."""
        if not self._has(entry):
            self._whole.expect(entry, offset, size)
            return
        with contextlib.suppress(CheckpointError, OSError):  # then the checkpoint itself is read
            self._copy.expect(entry, offset, size)

    def read_copy(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> bool:
        """Read the range from the copy, or from one of the other reader."""
        if self._has(entry):
            try:
                self._copy.read_into(entry, offset, targets, on_progress)
            except (CheckpointError, OSError):
                on_progress(0)
                with self._changed:
                    self._lost.add(entry.path)
            else:
                with self._changed:
                    self.copy_bytes += sum(map(len, targets))
                return True
        return self._whole.read_copy(entry, offset, targets, on_progress)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Read the range from the checkpoint itself."""
        with self._changed:
            self.whole_bytes += sum(map(len, targets))
        self._whole.read_into(entry, offset, targets, on_progress)

    def _has(self, entry: FileEntry) -> bool:
        with self._changed:
            if entry.path in self._lost:
                return False
        return self._copy.has(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()
        if isinstance(self._whole, FilesReader | CopyFirstReader):
            self._whole.__exit__(*of_error)

    def close(self) -> None:
        """Let the copy go; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._copy.close()
        if self.copy_bytes:
            copied, rest = human_size(self.copy_bytes), human_size(self.whole_bytes)
            log.info("read %s from %s, %s from %s", copied, self._copy.name, rest, self.name)

    def __del__(self) -> None:
        self.close()  # loads do not close readers of stores


class _KeptFiles(FilesReader):
    """The files that this node kept of a checkpoint; the folder stays while they are read."""

    def has(self, entry: FileEntry) -> bool:
        """Whether there is such a file, of its size."""
        with contextlib.suppress(CheckpointError, OSError):
            self.check(entry)
            return True
        return False

    def close(self) -> None:
        self.__exit__()

    def _hold(self) -> int | None:
        return hold_for_reading(self._content)


def with_kept_parts(whole: CheckpointReader, root: Path | None) -> CheckpointReader:
    """`whole`, or a reader that takes what this node kept of it below `root` from there."""
    kept = None if root is None else find_kept_part(root, whole.manifest)
    return whole if kept is None else CopyFirstReader(whole, _KeptFiles(kept, whole.manifest))
