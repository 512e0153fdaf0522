"""Sends the logs of a checkpoint directory to the store: small objects, a segment of a log each.

The segment that grows is written again under its name, whole; the others never change. Nothing is
remembered that another process would need: names follow from the files, and what lies in the store
is listed once. No lease is needed, since no two directories share a name.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.log_kinds import (
    LOGS,
    SEGMENT_BYTES,
    Segment,
    first_segment,
    log_folder,
    segment_of_name,
)
from bt_lightning.path_layout import DOT_DIR, under
from bt_lightning.store.secrets import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.log_kinds import LogKind
    from bt_lightning.store.interface import Store

MOST_OBJECTS: Final = 1024
"""Objects of one log that a store keeps."""
_AT_A_TIME: Final = 8
"""Segments of one log that are sent at a time: a storm of output waits, and may be cut."""
_GROWN: Final = 8
"""A segment is sent again when it has grown by this part of it, or after `_LATE_S`."""
_LATE_S: Final = 60.0
_HEAD: Final = 4
"""The first of a log that is kept: this part of what a store keeps."""
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Sent:
    """What the store has of one file of a log."""

    segment: Segment
    """The newest."""
    size: int = -1
    """Bytes of the file that the store has; -1: not known."""
    at: float = _NEVER


@dataclass(slots=True)
class _Log:
    kind: LogKind
    objects: dict[Segment, int] | None = None
    """What the store has, with its bytes; None: not listed yet."""
    files: dict[tuple[int, str], _Sent] = field(default_factory=dict)
    refused: bool = False
    """Whether the file on the disk cannot be read."""


class LogSender:
    """The logs of one directory, below one prefix of a store. Used by one thread."""

    def __init__(
        self,
        root: Path,
        store: Store,
        prefix: str,
        secrets: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secrets` are hidden in whatever is sent."""
        self._folder = root / DOT_DIR
        self._store = store
        self._prefix = prefix
        self._secrets = secrets
        self._clock = clock
        self._logs = [_Log(kind) for kind in LOGS]

    def seen(self) -> tuple[tuple[int, int], ...]:
        """Inode and size of each file: unchanged while nothing is logged. Reads no file."""
        return tuple(self._seen(name) for log in self._logs for name in _files(log.kind))

    def _seen(self, name: str) -> tuple[int, int]:
        try:
            status = (self._folder / name).stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_size

    def forget(self) -> None:
        """Trust nothing known of the store."""
        self._logs = [_Log(log.kind) for log in self._logs]

    def send(self, *, ending: bool) -> bool:
        """Send what was logged, if it is worth a request; all of it if `ending`.

        Returns whether something was left for later.

        Raises:
            StoreError: the store refused; the next call goes on.
            OSError: the disk refused.
        """
        left = False
        for log in self._logs:
            room = _AT_A_TIME
            for name in _files(log.kind):
                with contextlib.suppress(FileNotFoundError, CheckpointCorruptError):
                    used, more = self._send_file(log, self._folder / name, room, ending=ending)
                    room, left = room - used, left or more
            self._trim(log)
        return left

    def _send_file(self, log: _Log, path: Path, room: int, *, ending: bool) -> tuple[int, bool]:
        """Send what is new in one file; return the segments sent, and whether there is more."""
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, LINE.size, 0)
            if b"\n" not in head:
                return 0, False
            sent = self._sent(log, first_segment(head[: head.index(b"\n")]))
            used = 0
            while size > sent.size and (used < room or ending):
                number = sent.segment.number
                if not (ending or self._is_due(sent, size)):
                    return used, True
                data, end = _segment(descriptor, number, size)
                if data and end > sent.size:
                    self._put(log, sent.segment, data)
                    used += 1
                sent.size, sent.at = max(sent.size, end), self._clock()
                if end < (number + 1) * SEGMENT_BYTES:
                    return used, False  # the rest is a line that is being written
                sent.segment = sent.segment._replace(number=number + 1)
            return used, size > sent.size
        finally:
            os.close(descriptor)

    def _sent(self, log: _Log, first: Segment) -> _Sent:
        found = log.files.get(first.of_file)
        if found is None:
            if log.objects is None:
                log.objects = self._listed(log.kind)
            known = [one for one in log.objects if one.of_file == first.of_file]
            found = log.files[first.of_file] = _Sent(max(known, default=first))
        return found

    def _listed(self, kind: LogKind) -> dict[Segment, int]:
        found, left = {}, []
        for info in self._store.list(log_folder(self._prefix, kind)):
            segment = segment_of_name(info.key.rpartition("/")[2])
            if segment is not None:
                found[segment] = info.size
            else:
                left.append(info.key)  # half written into a folder, by a process that was killed
        if left:
            self._store.delete(left)
        return found

    def _is_due(self, sent: _Sent, size: int) -> bool:
        """Whether what is new is worth sending the growing segment again."""
        begin = sent.segment.number * SEGMENT_BYTES
        had = max(sent.size - begin, 0)
        return (
            size - begin >= SEGMENT_BYTES
            or size - sent.size >= had // _GROWN
            or self._clock() - sent.at >= _LATE_S
        )

    def _put(self, log: _Log, segment: Segment, data: bytes) -> None:
        text = hide(data.decode("utf-8", "replace"), self._secrets).encode()
        self._store.put(under(log_folder(self._prefix, log.kind), segment.name), text)
        assert log.objects is not None  # since `_sent`
        log.objects[segment] = len(text)

    def _trim(self, log: _Log) -> None:
        """Delete the oldest segments behind the first ones, if the store has too much."""
        objects = log.objects or {}
        gone = surplus(objects, log.kind.stored_bytes, MOST_OBJECTS)
        if gone:
            folder = log_folder(self._prefix, log.kind)
            self._store.delete([under(folder, segment.name) for segment in gone])
            for segment in gone:
                del objects[segment]


def surplus(objects: dict[Segment, int], most_bytes: int, most: int) -> list[Segment]:
    """What must go so that `most_bytes` and `most` objects remain: the oldest but the first ones.

    The first quarter of what is kept stays. Pure.
    """
    count, total = len(objects), sum(objects.values())
    gone: list[Segment] = []
    head = passed = 0
    for segment in sorted(objects):
        size = objects[segment]
        if count <= most and total <= most_bytes:
            break
        fits = (head + size) * _HEAD <= most_bytes and (passed + 1) * _HEAD <= most
        if fits and not gone:
            head, passed = head + size, passed + 1
            continue
        gone.append(segment)
        count, total = count - 1, total - size
    return gone


def _files(kind: LogKind) -> tuple[str, str]:
    return kind.older, kind.file


def _segment(descriptor: int, number: int, size: int) -> tuple[bytes, int]:
    """The whole lines of a file that begin within segment `number`, and where they end."""
    begin, end = number * SEGMENT_BYTES, (number + 1) * SEGMENT_BYTES
    offset = max(begin - 1, 0)  # the line feed before the segment may be its first byte
    data = os.pread(descriptor, min(size, end + LINE.size) - offset, offset)
    whole = len(data) == end + LINE.size - offset
    first = data.find(b"\n") + 1 if begin else 0
    if begin and not first:  # within a line that has no end yet, or that no reader takes
        return b"", end if whole else begin
    stop = data.find(b"\n", end - 1 - offset) + 1  # the last line that begins inside
    if not stop:
        stop = data.rfind(b"\n") + 1
        return data[first:stop], end if whole else offset + stop
    return data[first:stop], offset + stop
