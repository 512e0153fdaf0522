"""Weights in a bucket, a folder, or at an https URL: downloaded in parallel ranges, resumable.

A journal beside the data names the ranges that are written. It counts only for the same version of
the object, and only until the machine starts again: what a process wrote outlives the process in
the page cache, not a power cut.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from typing_extensions import Self

from bt_lightning.errors import StoreTransientError
from bt_lightning.file_limits import LINES_BYTES, RECORD, parse_json
from bt_lightning.localdir.direct_io import reserve
from bt_lightning.localdir.fsync import write_all
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines
from bt_lightning.store.interface import AnsweredTooSlowlyError
from bt_lightning.store.retry import backoff
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel
from bt_lightning.weights.weight_source import WeightFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.store.objects.pinned_object import Objects, PinnedObject

T = TypeVar("T")

_RANGE: Final = 8 * 1024 * 1024
_TRIES: Final = 5
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_DATA, _JOURNAL = "data", "ranges"


class ObjectSource:
    """The weights at the URL of a bucket, a folder, or one object."""

    large_at_once = 2

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._pinned: dict[str, PinnedObject] = {}

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._objects.name

    def files(self) -> list[WeightFile]:
        """One listing."""
        found = _retried(self._objects.find)
        self._pinned = {one.key: one for one in found}
        return [WeightFile(one.key, one.size, self._identity(one), one.checksums) for one in found]

    def fetch(
        self, file: WeightFile, folder: Path, on_bytes: Callable[[int], object]
    ) -> tuple[Path, Mapping[str, str]]:
        """Download in ranges; those that the journal names are not read again."""
        found = self._pinned[file.path]
        expected = _retried(lambda: self._objects.checksums(found))
        data = folder / _DATA
        with _Journal(folder / _JOURNAL, self._identity(found)) as journal:
            if not journal.done:
                data.unlink(missing_ok=True)
            descriptor = open_own(data, os.O_RDWR | os.O_CREAT)
            try:
                if found.has_ranges:
                    self._read_ranges(found, descriptor, journal, on_bytes)
                elif found.size:
                    self._read_whole(found, descriptor, on_bytes)
            finally:
                os.close(descriptor)
        return data, expected

    def _read_ranges(
        self,
        found: PinnedObject,
        descriptor: int,
        journal: _Journal,
        on_bytes: Callable[[int], object],
    ) -> None:
        reserve(descriptor, found.size)
        os.ftruncate(descriptor, found.size)
        offsets = range(0, found.size, _RANGE)
        on_bytes(sum(min(_RANGE, found.size - offset) for offset in journal.done & set(offsets)))
        scratch = Scratch()

        def read(offset: int) -> None:
            view = scratch.view(min(_RANGE, found.size - offset))
            _retried(lambda: self._objects.read_into(found, offset, view))
            written = 0
            while written < len(view):
                written += os.pwrite(descriptor, view[written:], offset + written)
            journal.add(offset)
            on_bytes(len(view))

        missing = [offset for offset in offsets if offset not in journal.done]
        in_parallel(read, missing, self._objects.connections)

    def _read_whole(
        self, found: PinnedObject, descriptor: int, on_bytes: Callable[[int], object]
    ) -> None:
        """Read from the first byte to the last, straight into the file, whose room is allocated."""
        os.posix_fallocate(descriptor, 0, found.size)
        os.ftruncate(descriptor, found.size)
        with mmap.mmap(descriptor, found.size) as memory, memoryview(memory) as view:
            _retried(lambda: self._objects.read_into(found, 0, view))
        on_bytes(found.size)

    def _identity(self, found: PinnedObject) -> str:
        if not found.version:
            return ""
        return json.dumps([self.name, found.key, found.version, found.size])


class _Journal:
    """The ranges of one object that are written; used by several threads."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._head = {"identity": identity, "boot": _boot_id()}
        self.done: set[int] = set()
        if identity and self._head["boot"]:
            self.done = self._read()

    def __enter__(self) -> Self:
        if not self.done:
            self._path.unlink(missing_ok=True)
        self._descriptor = open_own(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if self.done:
            write_all(self._descriptor, memoryview(b"\n"))  # the last line may be cut
        else:
            self._append(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def add(self, offset: int) -> None:
        """Note that the range at `offset` is written; called after the write."""
        with self._lock:
            self._append(offset)

    def _append(self, value: object) -> None:
        write_all(self._descriptor, memoryview(json.dumps(value).encode() + b"\n"))

    def _read(self) -> set[int]:
        try:
            read = read_lines(self._path, most=LINES_BYTES)
            lines = [line for line in read if line.endswith(b"\n") and line.strip()]
            if not lines or parse_json(lines[0], RECORD) != self._head:
                return set()
            return {int(line) for line in lines[1:]}
        except (OSError, ValueError):
            return set()


def _retried(ask: Callable[[], T]) -> T:
    for failures in range(_TRIES - 1):
        try:
            return ask()
        except AnsweredTooSlowlyError:
            raise
        except StoreTransientError:
            time.sleep(backoff(failures, random.random()))  # noqa: S311 - no secret
    return ask()


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
