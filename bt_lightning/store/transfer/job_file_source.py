"""The source for uploading a job file, which other programs may write to at any moment.

After each read the file's stamp is compared with the one of the moment when it was chosen. If it
changed, the upload fails before its end, and the object in the store stays what it was. So an
object never holds the beginning of one state and the end of another.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

import xxhash
from typing_extensions import Self

from bt_lightning.errors import CheckpointNotFoundError, StoreError, StorePermanentError
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.list_and_verify_checkpoints import NO_FILE
from bt_lightning.path_layout import under

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.store.interface import Lent, Store

_TICK_S = 0.02
"""Longer than the kernel's clock of files stands still; writes within one tick leave one stamp."""
_TRIES = 10
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class JobFileSource:
    """One file in the state of `stamp`, or that of this moment. Use it in a `with` block.

    It is read, not mapped: a file that is truncated while it is mapped would kill the process.
    """

    part_bytes = 8 * 1024 * 1024
    """Small, since each part is a copy in memory."""

    def __init__(self, file: Path, stamp: Stamp | None = None) -> None:
        """Open the file.

        Raises `CheckpointNotFoundError` if it changed since `stamp`, and `OSError` if it cannot be
        opened.
        """
        self._file = file
        try:
            self._descriptor = os.open(file, _FLAGS)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise self._changed() from error
        try:
            self.stamp = self._now() if stamp is None else stamp
            """The file's state that is sent, or nothing is."""
            self.check()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._local = threading.local()

    def _now(self) -> Stamp:
        """The state of a moment after which nobody wrote for a tick."""
        for _ in range(_TRIES):
            stamp = Stamp.of(os.fstat(self._descriptor))
            time.sleep(_TICK_S)  # a write that leaves this stamp is over before the first reading
            if Stamp.of(os.fstat(self._descriptor)) == stamp:
                return stamp
        raise self._changed()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp.size

    @property
    def digest(self) -> str:
        """Digest of path and stamp: equal stamps mean equal bytes, so an upload can be resumed."""
        return xxhash.xxh3_128_hexdigest(repr((str(self._file), *self.stamp)).encode())

    def check(self) -> None:
        """Raise `CheckpointNotFoundError` if the file changed since its stamp."""
        status = os.fstat(self._descriptor)
        if Stamp.of(status) != self.stamp or not stat.S_ISREG(status.st_mode):
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
        """Read each range when it is viewed."""
        yield _Range(self, offset, size)

    def read(self, view: memoryview, offset: int) -> memoryview:
        """Fill `view` from `offset` on; raise `CheckpointNotFoundError` if the file changed."""
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
    """A range lent to one thread; the last view is kept, since a checksum and a send read it."""

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


def send_job_file(
    store: Store, root: Path, prefix: str, path: str, stamp: Stamp | None
) -> Stamp | Exception:
    """Send one file in the state of `stamp`, or that of this moment; return the state.

    An error of this file only is returned, `CheckpointNotFoundError` if it changed while it was
    read; a change behind the last reading is none. Called by several threads.

    Raises:
        StoreError: another try may succeed.
    """
    key = under(prefix, path)
    try:
        with JobFileSource(root / path, stamp) as source:
            if source.size:
                store.send(source, key)
            else:
                store.put(key, b"")
            return source.stamp
    except (CheckpointNotFoundError, StorePermanentError) as error:
        return error
    except StoreError:
        raise
    except OSError as error:  # reading the disk failed
        return error
