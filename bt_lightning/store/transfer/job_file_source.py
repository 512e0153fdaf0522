"""The bytes of a file that somebody may write to at any moment, as a source to send.

After each reading the file is asked whether it changed since it was chosen. So of one that does,
no part reaches the end of its sending, and the object in the store stays what it was: never the
beginning of one state with the end of another.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING

import xxhash
from typing_extensions import Self

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.local_checkpoints import NO_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.store.interface import Lent

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class JobFileSource:
    """One file as it was by its stamp. Use it in a `with` block.

    It is read, not mapped: a file that is cut short while it is mapped would end the process.
    """

    part_bytes = 8 * 1024 * 1024
    """Small, since what is held is a copy."""

    def __init__(self, file: Path, stamp: Stamp) -> None:
        """Raises `CheckpointNotFoundError` if it is another file, and `OSError` if none can be."""
        self._file = file
        self._stamp = stamp
        try:
            self._descriptor = os.open(file, _FLAGS)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise self._changed() from error
        try:
            self.check()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._local = threading.local()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._stamp.size

    @property
    def digest(self) -> str:
        """Of the stamp: equal ones mean equal bytes, so an upload of them can be gone on with."""
        return xxhash.xxh3_128_hexdigest(repr((str(self._file), *self._stamp)).encode())

    def check(self) -> None:
        """Raise `CheckpointNotFoundError` if the file changed, or has lost its name."""
        status = os.fstat(self._descriptor)
        if Stamp.of(status) != self._stamp or not stat.S_ISREG(status.st_mode):
            raise self._changed()

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Read the bytes into this thread's buffer."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(size)
        yield self.read(memoryview(buffer)[:size], offset)

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[Lent]:
        """Read as much at a time as is looked at."""
        yield _Range(self, offset, size)

    def read(self, view: memoryview, offset: int) -> memoryview:
        """Fill `view`; raise `CheckpointNotFoundError` unless the file is still what it was."""
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if not count:
                raise self._changed()
            done += count
        self.check()
        return view

    def _changed(self) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(f"{self._file} changed while it was to be sent")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class _Range:
    """What is lent to one thread; what it looked at last is kept, since it looks again."""

    def __init__(self, source: JobFileSource, offset: int, size: int) -> None:
        self.size = size
        self._source = source
        self._offset = offset
        self._at = 0
        self._view = memoryview(b"")

    @contextlib.contextmanager
    def view(self, start: int, stop: int) -> Iterator[memoryview]:
        if start < self._at or stop > self._at + len(self._view):
            view = memoryview(bytearray(stop - start))
            self._view, self._at = self._source.read(view, self._offset + start), start
        yield self._view[start - self._at : stop - self._at]
