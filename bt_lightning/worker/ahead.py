"""Files that are sent to the store while they are still being written to the disk.

The committer lends the bytes of an image to the publisher, and takes them back when the checkpoint
is committed: from then on they come from its files. Taking back never waits for the network.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.sources import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.manifest import FileEntry

_PART_BYTES = 8 * 1024 * 1024


class LentSource:
    """The bytes of one file of a checkpoint: of an arena at first, of the disk later."""

    part_bytes = _PART_BYTES
    """Small, since what is held is a copy: the arena may be wanted back at any moment."""

    def __init__(self, descriptor: int, offset: int, entry: FileEntry) -> None:
        """`descriptor` is the arena's, and stays the caller's; the bytes begin at `offset`."""
        self._entry = entry
        self._offset = offset
        self._arena: int | None = os.dup(descriptor)
        self._file: FileSource | None = None
        self._readers = 0
        self._closed = False
        self._changed = threading.Condition()
        self._local = threading.local()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._entry.size

    @property
    def digest(self) -> str:
        """XXH3-128 of the bytes."""
        return self._entry.xxh3_128

    @property
    def entry(self) -> FileEntry:
        """What the manifest will say of the file."""
        return self._entry

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Copy the bytes out of the arena, or read and verify those of the file.

        Raises `CheckpointNotFoundError` if the commit failed, and there will be no such file.
        """
        with self._changed:
            arena, file = self._arena, self._file
            self._readers += arena is not None
        if arena is not None:
            try:
                view = self._copy(arena, offset, size)
            finally:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()
            yield view
        elif file is not None:
            with file.hold(offset, size) as view:
                yield view
        else:
            msg = f"{self._entry.path} was given up before it was sent"
            raise CheckpointNotFoundError(msg)

    def _copy(self, arena: int, offset: int, size: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(size)
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = os.preadv(arena, [view[done:]], self._offset + offset + done)
            if not count:
                msg = f"the arena ends within {self._entry.path}"
                raise CheckpointNotFoundError(msg)
            done += count
        return view

    def take_back(self, file: Path | None) -> None:
        """Read from `file` from now on; the arena is not looked at again when this returns."""
        found = None
        if file is not None:
            with contextlib.suppress(OSError):  # it is gone again: this publication is, too
                found = FileSource(file, self._entry)
        with self._changed:
            arena, self._arena = self._arena, None
            self._changed.wait_for(lambda: not self._readers)
            self._file, found = (None, found) if self._closed else (found, None)
        if arena is not None:
            os.close(arena)
        if found is not None:
            found.close()

    def close(self) -> None:
        """No thread will hold any bytes any more."""
        with self._changed:
            self._closed = True
            file, self._file = self._file, None
        if file is not None:
            file.close()


class Offer:
    """A checkpoint whose files may be sent before it is committed."""

    def __init__(self, checkpoint_id: str, generation: int) -> None:
        self.checkpoint_id = checkpoint_id
        self.generation = generation
        self._waiting: dict[str, LentSource] = {}
        self._sending: dict[str, LentSource] = {}
        self._over = False
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether the commit has come to an end, good or bad."""
        with self._lock:
            return self._over

    def add(self, path: str, source: LentSource) -> None:
        """Lend one more file; called by the committer, before `take_back`."""
        with self._lock:
            self._waiting[path] = source

    def take(self) -> LentSource | None:
        """The next file that may be sent; None if there is none now, or the commit has ended.

        Called by the publisher, which closes each source when it is done with it.
        """
        with self._lock:
            if self._over or not self._waiting:
                return None
            path = next(iter(self._waiting))
            self._sending[path] = self._waiting.pop(path)
            return self._sending[path]

    def take_back(self, final: Path | None) -> None:
        """The checkpoint is committed at `final`, or will never be; called by the committer."""
        with self._lock:
            self._over = True
        for source in self._waiting.values():
            source.take_back(None)
        for path, source in self._sending.items():
            source.take_back(None if final is None else final / path)
