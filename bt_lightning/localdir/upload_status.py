"""The status file of the worker's current upload, for other processes such as the CLI.

It is replaced as a whole, at most every `EVERY_S` seconds, and not needed to resume.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

FILE = "uploading.json"
EVERY_S = 0.5
_MOST_PIDS = 2**31


@dataclass(frozen=True, slots=True)
class Uploading:
    """The status of the worker's upload at one moment."""

    pid: int
    """Process id of the worker."""
    at: float
    """When the file was written, in seconds since the epoch."""
    checkpoint: str = ""
    """Id of the checkpoint that is being uploaded; empty if none is."""
    began: float = 0.0
    """When the upload began, in seconds since the epoch."""
    bytes_done: int = 0
    bytes_total: int = 0
    waiting: int = 0
    """Number of further checkpoints that are not in the store yet."""
    error: str = ""
    """Why the last try failed; empty if it did not."""

    @property
    def alive(self) -> bool:
        """Whether a process with the worker's pid runs on this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


class UploadMeter:
    """Writes the status file. `add` is called by several threads, the others by one at a time."""

    def __init__(self, root: Path) -> None:
        self._file = root / DOT_DIR / FILE
        self._lock = threading.Lock()
        self._now = Uploading(os.getpid(), time.time())
        self._next = 0.0
        self.sent = 0
        """Bytes of all uploads so far, also of those that failed."""

    @property
    def done(self) -> int:
        """Bytes of the current upload that are sent; 0 if there is none."""
        with self._lock:
            return self._now.bytes_done

    def begin(self, checkpoint: str, total: int, waiting: int) -> None:
        """Record the start of an upload of `total` bytes, with `waiting` more checkpoints."""
        now = time.time()
        with self._lock:
            self._now = Uploading(os.getpid(), now, checkpoint, now, 0, total, waiting)
            self._write()

    def add(self, count: int) -> None:
        """Record `count` more bytes as sent."""
        with self._lock:
            self.sent += count
            facts = asdict(self._now)
            facts["bytes_done"] = min(self._now.bytes_done + count, self._now.bytes_total)
            self._now = Uploading(**facts)
            if time.monotonic() >= self._next:
                self._write()

    def end(self, error: str = "") -> None:
        """Record the end of the upload: success, or the failure `error`."""
        with self._lock:
            waiting = self._now.waiting + bool(error)
            self._now = Uploading(os.getpid(), time.time(), waiting=waiting, error=error[:1000])
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + EVERY_S
        text = json.dumps({**asdict(self._now), "at": time.time()}).encode("ascii")
        with contextlib.suppress(OSError):  # the status is not worth an error
            replace_small(self._file, text, durable=False)


def read_uploading(root: Path) -> Uploading | None:
    """The last status of the worker of `root`; None if there is none, or it is damaged."""
    try:
        status = Uploading(**read_json(root / DOT_DIR / FILE, RECORD))
    except (OSError, ValueError, TypeError):
        return None
    numbers: tuple[Any, ...] = (
        status.pid,
        status.at,
        status.began,
        status.bytes_done,
        status.bytes_total,
        status.waiting,
    )
    whole = all(type(number) in {int, float} for number in numbers)
    texts: tuple[Any, ...] = (status.checkpoint, status.error)
    whole = whole and all(isinstance(text, str) for text in texts)
    return status if whole and 0 < int(status.pid) < _MOST_PIDS else None
