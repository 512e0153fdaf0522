"""Upload of a checkpoint's files to the store while they are still being written to the disk.

The commit thread lends the bytes of an image to the publisher, and takes them back when the
checkpoint is committed: from then on the publisher reads the files. Taking back never waits for the
network.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.transfer.file_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import Lent

_PART_BYTES = 8 * 1024 * 1024


class LentSource:
    """The bytes of one file of a checkpoint: from the arena, after the commit from the disk."""

    part_bytes = _PART_BYTES
    """Small, since `hold` copies the bytes."""

    def __init__(self, image: memoryview, entry: FileEntry) -> None:
        """`image` lies in the arena's mapping; `take_back` releases it."""
        self._entry = entry
        self._image: memoryview | None = image
        self._file: FileSource | None = None
        self._readers = 0
        self._settled = False
        self._closed = False
        self._changed = threading.Condition()
        self._local = threading.local()

    @property
    def size(self) -> int:
        """Bytes of the file."""
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
        """Copy the bytes out of the arena, or hold those of the file.

        Raises `CheckpointNotFoundError` if the commit failed, and there will be no such file.
        """
        with self.image() as image:
            copy = None if image is None else self._copy(image[offset : offset + size])
        if copy is not None:
            yield copy
        else:
            with self.file().hold(offset, size) as view:
                yield view

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[Lent]:
        """Lend a range of the arena; once that is taken back, of the file, verified by blocks."""
        with contextlib.ExitStack() as held_open:
            yield _LentRange(self, offset, size, held_open)

    @contextlib.contextmanager
    def image(self) -> Iterator[memoryview | None]:
        """Yield the bytes in the arena, which is not taken back meanwhile; None if it was."""
        with self._changed:
            image = self._image
            self._readers += image is not None
        try:
            yield image
        finally:
            with self._changed:
                self._readers -= image is not None
                self._changed.notify_all()

    def file(self) -> FileSource:
        """The committed file; waits until the arena was taken back."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled)  # waits for readers of the arena only
            file = self._file
        if file is None:
            msg = f"{self._entry.path} was given up before it was sent"
            raise CheckpointNotFoundError(msg)
        return file

    def _copy(self, data: memoryview) -> memoryview:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < len(data):
            buffer = self._local.buffer = bytearray(len(data))
        view = memoryview(buffer)[: len(data)]
        view[:] = data
        return view

    def take_back(self, file: Path | None) -> None:
        """Read from `file` from now on; when this returns the arena is not read any more.

        `file` is None if the commit failed.
        """
        found = None
        if file is not None:
            with contextlib.suppress(OSError):  # deleted again: so is what was sent
                found = FileSource(file, self._entry)
        with self._changed:
            self._image = None
            self._changed.wait_for(lambda: not self._readers)
            self._file, found = (None, found) if self._closed else (found, None)
            self._settled = True
            self._changed.notify_all()
        if found is not None:
            found.close()

    def close(self) -> None:
        """Close the file; no thread reads from the source after this."""
        with self._changed:
            self._closed = True
            file, self._file = self._file, None
        if file is not None:
            file.close()


class _LentRange:
    """A range of one source, lent to one thread."""

    def __init__(
        self, source: LentSource, offset: int, size: int, held_open: contextlib.ExitStack
    ) -> None:
        self.size = size
        self._source = source
        self._offset = offset
        self._until_then = held_open
        self._file: Lent | None = None

    @contextlib.contextmanager
    def view(self, start: int, stop: int) -> Iterator[memoryview]:
        with self._source.image() as image:
            if image is not None:
                yield image[self._offset + start : self._offset + stop]
                return
        if self._file is None:
            lent = self._source.file().lend(self._offset, self.size)
            self._file = self._until_then.enter_context(lent)
        with self._file.view(start, stop) as view:
            yield view


class EarlyUpload:
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
        """Whether the commit has succeeded or failed."""
        with self._lock:
            return self._over

    def add(self, path: str, source: LentSource) -> None:
        """Lend one more file; called by the commit thread, before `take_back`."""
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
        """End the early upload: the checkpoint is committed at `final`, or failed (None).

        Called by the commit thread.
        """
        with self._lock:
            self._over = True
        for source in self._waiting.values():
            source.take_back(None)
        for path, source in self._sending.items():
            source.take_back(None if final is None else final / path)
