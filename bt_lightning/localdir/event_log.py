"""What happened to each save, one JSON line each: for people, loggers' backup, and `trace`.

Appended by the training process and by its worker; a line is one write(2) to a file opened for
appending, so lines of two processes never mix. Nothing here is needed to resume. A file that has
grown to `MOST_BYTES` gets another name, and takes the place of the one before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.file_locks import lock
from bt_lightning.localdir.safe_open import open_own, open_regular
from bt_lightning.localdir.small_files import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "events.jsonl"
OLDER: Final = "events.1.jsonl"
MOST_BYTES: Final = 4 * 1024 * 1024
"""Some 5,000 saves. Twice that is kept at least, as soon as there is so much."""
_HEAD_BYTES: Final = 256
_LATEST = 1e11
"""Seconds of the epoch, some 3,000 years on: a time that calendars know."""


def note(root: Path, event: str, **facts: object) -> None:
    """Append one event of the checkpoint directory `root`, with the time of now.

    Raises:
        OSError: the disk refused. Callers go on: an event is no checkpoint.
    """
    line = json.dumps({"event": event, "at": time.time(), **facts}) + "\n"
    folder = root / DOT_DIR
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"  # a full disk took half of it
        os.write(descriptor, f"{chr(10) if torn else ''}{line}".encode())
        if size >= MOST_BYTES:
            _set_aside(folder, descriptor)
    finally:
        os.close(descriptor)


def _set_aside(folder: Path, descriptor: int) -> None:
    """Give the file that is open another name, unless somebody just did; the next line begins one.

    Who has it open still writes to it: no line is lost.
    """
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if os.path.samestat(os.fstat(descriptor), (folder / FILE).lstat()):
        (folder / FILE).replace(folder / OLDER)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the events of a directory: behind all that were there when it was made."""

    inode: int = 0
    head: bytes = b""
    """The first bytes: a number of an inode is given again."""
    size: int = 0

    def is_of(self, other: Mark) -> bool:
        """Whether it is of the file of which `other` is the end."""
        same = self.inode == other.inode and other.head.startswith(self.head)
        return bool(self.head) and same


def mark_events(root: Path | None) -> Mark:
    """Where the events of `root` begin that follow; where there is nothing yet, all of them do."""
    if root is None:
        return Mark()
    end = _end_of(root / DOT_DIR / FILE)
    return end if end.head else _end_of(root / DOT_DIR / OLDER)


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


def read_events(root: Path, since: Mark | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of `root` in the order of their lines; half a line at the end is left out.

    Those behind `since`, as far as they are kept; else all that are. Of a file of more than 16 MiB,
    the last.

    Raises:
        FileNotFoundError: there are none.
        CheckpointCorruptError: what has that name is no regular file.
    """
    file, older = root / DOT_DIR / FILE, root / DOT_DIR / OLDER
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
            try:
                event = parse_json(line, LINE)
            except CheckpointCorruptError:
                continue  # cut off by a kill or a full disk
            if isinstance(event, dict) and _is_event(event):
                yield event


def _is_event(event: dict[str, Any]) -> bool:
    """Whether it says what and when; what else it says is up to who reads it."""
    kind, at = event.get("event"), event.get("at")
    when = isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < _LATEST
    return isinstance(kind, str) and when
