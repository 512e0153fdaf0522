"""What happened to each save, one JSON line each: for people, loggers' backup, and `trace`.

Appended by the training process and by its worker; a line is one write(2) to a file opened for
appending, so lines of two processes never mix. Nothing here is needed to resume.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from bt_lightning.bounded import LINE, parse_json
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.opening import open_own
from bt_lightning.localdir.small import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "events.jsonl"
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
    finally:
        os.close(descriptor)


def events_size(root: Path | None) -> int:
    """Bytes of the events of `root`: where those that follow begin."""
    try:
        return 0 if root is None else (root / DOT_DIR / FILE).stat().st_size
    except OSError:
        return 0


def read_events(root: Path, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the events of `root` in the order of their lines; half a line at the end is left out.

    Those from byte `start` on; all of them, if the file has been replaced by a shorter one. Of a
    file of more than 16 MiB, the last.

    Raises:
        FileNotFoundError: there are none.
        CheckpointCorruptError: what has that name is no regular file.
    """
    for line in read_lines(root / DOT_DIR / FILE, start):
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
