"""The logs of a checkpoint directory, one JSON line an event: for people, `trace` and the store.

The training process, its worker and the runner append to them; what is appended at a time is one
write(2) to a file opened for appending, so lines of two processes never mix. Nothing here is needed
to resume. A full file is renamed, in place of the one before it (`log_kinds`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.localdir.file_locks import lock
from bt_lightning.localdir.safe_open import open_own, open_regular
from bt_lightning.localdir.small_files import read_lines
from bt_lightning.log_kinds import EVENTS
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.log_kinds import LogKind

_HEAD_BYTES: Final = 256
_LATEST = 1e11
"""Latest valid time, in seconds since the epoch: the year 5138, which `datetime` can hold."""


def note(root: Path, event: str, **facts: object) -> None:
    """Append one event to the log of the checkpoint directory `root`, with the current time.

    Raises:
        OSError: the disk refused. Callers go on without the event.
    """
    append(root, log_line(event, time.time(), **facts), EVENTS)


def began_facts() -> dict[str, object]:
    """What the event of a training that begins says of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def log_line(event: str, at: float, **facts: object) -> bytes:
    """One line of a log; `at` are seconds of the epoch."""
    return (json.dumps({"event": event, "at": at, **facts}) + "\n").encode("ascii")


def append(root: Path, lines: bytes, kind: LogKind) -> None:
    """Append whole lines to a log of the checkpoint directory `root`.

    Raises:
        OSError: the disk refused.
    """
    folder = root / DOT_DIR
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(folder / kind.file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"  # a full disk cut a line short
        os.write(descriptor, b"\n" + lines if torn else lines)
        if size >= kind.most_bytes:
            _rotate(folder, descriptor, kind)
    finally:
        os.close(descriptor)


def _rotate(folder: Path, descriptor: int, kind: LogKind) -> None:
    """Rename the open log to its older name, unless another process just did.

    A process that still has it open appends to the renamed file, so no line is lost.
    """
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
        if os.path.samestat(os.fstat(descriptor), (folder / kind.file).lstat()):
            (folder / kind.file).replace(folder / kind.older)


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in an event log: the end of the log when the mark was made."""

    inode: int = 0
    head: bytes = b""
    """The first bytes of the file: an inode number may be reused."""
    size: int = 0

    def is_of(self, other: Mark) -> bool:
        """Whether both marks are of the same file; `other` is its end."""
        same = self.inode == other.inode and other.head.startswith(self.head)
        return bool(self.head) and same


def mark_events(root: Path | None) -> Mark:
    """A mark at the end of the log of `root`; at its beginning if there is no log yet."""
    if root is None:
        return Mark()
    end = _end_of(root / DOT_DIR / EVENTS.file)
    return end if end.head else _end_of(root / DOT_DIR / EVENTS.older)


def _end_of(file: Path) -> Mark:
    try:
        descriptor = open_regular(file)
    except (OSError, CheckpointCorruptError):
        return Mark()
    try:
        status = os.fstat(descriptor)
        return Mark(status.st_ino, os.pread(descriptor, _HEAD_BYTES, 0), status.st_size)
    finally:
        os.close(descriptor)


def read_events(
    root: Path, since: Mark | None = None, kind: LogKind = EVENTS
) -> Iterator[dict[str, Any]]:
    """Yield the events of a log of `root` in the order of their lines; torn lines are left out.

    With `since`, only the events after it, if they are still kept; else all events. Of a file of
    more than 16 MiB, only the last 16 MiB.

    Raises:
        FileNotFoundError: there is no log.
        CheckpointCorruptError: the log is no regular file.
    """
    file, older = root / DOT_DIR / kind.file, root / DOT_DIR / kind.older
    start = {older: 0, file: 0}
    if since is not None and since.is_of(_end_of(file)):
        start = {file: since.size}
    elif since is not None and since.is_of(_end_of(older)):
        start[older] = since.size
    if older.is_file() and not file.exists():
        start.pop(file)
    elif not older.is_file():
        start.pop(older, None)
    for each, begin in start.items():
        for line in read_lines(each, begin):
            if (event := event_of(line)) is not None:
                yield event


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None if it is none, or was cut off by a kill or a full disk."""
    try:
        event = parse_json(line, LINE)
    except CheckpointCorruptError:
        return None
    return event if isinstance(event, dict) and _is_event(event) else None


def _is_event(event: dict[str, Any]) -> bool:
    """Whether the event has a kind and a valid time; readers check its other fields."""
    kind, at = event.get("event"), event.get("at")
    when = isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < _LATEST
    return isinstance(kind, str) and when
