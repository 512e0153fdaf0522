"""Read a checkpoint from the files of it that this node kept, and the rest from the store.

A file counts only if it has its size, and each of its blocks only if it has its digest. What does
not is read from the store, where the whole checkpoint is.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from typing_extensions import Self

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.kept_parts import find_kept_part
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.store.transfer.block_verifier import wrong_blocks
from bt_lightning.store.transfer.checkpoint_reader import FilesReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import ReadProgress
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class PartsFirstReader:
    """A `CheckpointReader` over a node's kept files and another reader.

    Use it in a `with` block, or let it go: its files are closed with it.

    Used by several threads at once.
    """

    def __init__(self, stored: CheckpointReader, kept: Path) -> None:
        """`kept` is the folder of the kept files of the checkpoint that `stored` reads."""
        self._stored = stored
        self._kept = _KeptFiles(kept, stored.manifest)
        self._changed = threading.Lock()
        self._local: dict[str, bool] = {}
        """Path -> whether its local file is used."""
        self.local_bytes = 0
        """How many bytes came from this node's disk."""

    @property
    def name(self) -> str:
        """The checkpoint in the store, for messages."""
        return self._stored.name

    @property
    def manifest(self) -> Manifest:
        """The checkpoint's manifest."""
        return self._stored.manifest

    @property
    def piece_bytes(self) -> int:
        """The best size of a read, in bytes."""
        return self._stored.piece_bytes

    @property
    def gap_bytes(self) -> int:
        """What is read to save another read, at most, in bytes."""
        return self._stored.gap_bytes

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""
        return self._stored.connections

    def check(self, entry: FileEntry) -> None:
        """As `CheckpointReader.check`: where a file is whole on this disk it is not asked for."""
        if not self._is_local(entry):
            self._stored.check(entry)

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """As `CheckpointReader.expect`, of the kept file where there is one."""
        if self._is_local(entry):
            with contextlib.suppress(CheckpointError, OSError):  # then the store is read
                self._kept.expect(entry, offset, size)

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Fill `targets` as `CheckpointReader.read_into`; what is kept damaged, from the store."""
        if offset % entry.block_bytes == 0 and self._is_local(entry):
            try:
                self._kept.read_into(entry, offset, targets)
                wrong = bool(wrong_blocks(entry, offset, targets))
            except (CheckpointError, OSError):
                wrong = True
            with self._changed:
                self._local[entry.path] &= not wrong
                self.local_bytes += 0 if wrong else sum(map(len, targets))
            if not wrong:
                return
        self._stored.read_into(entry, offset, targets, on_progress)

    def _is_local(self, entry: FileEntry) -> bool:
        with self._changed:
            if entry.path not in self._local:
                self._local[entry.path] = False
                with contextlib.suppress(CheckpointError, OSError):
                    self._kept.check(entry)
                    self._local[entry.path] = True
            return self._local[entry.path]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.__exit__()


class _KeptFiles(FilesReader):
    """The kept files; the folder stays while they are read."""

    def _hold(self) -> int | None:
        return hold_for_reading(self._content)

    def __del__(self) -> None:
        self.__exit__()  # loads do not close readers of stores


def with_kept_parts(stored: CheckpointReader, root: Path | None) -> CheckpointReader:
    """`stored`, or a reader that takes what this node kept of it below `root` from there."""
    kept = None if root is None else find_kept_part(root, stored.manifest)
    return stored if kept is None else PartsFirstReader(stored, kept)
