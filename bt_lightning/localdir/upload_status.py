"""What the worker is uploading just now, in a small file that other processes read.

Replaced as a whole, at most every `EVERY_S` seconds; nothing is needed from it to go on.
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
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.small_files import read_json, replace_small

if TYPE_CHECKING:
    from pathlib import Path

FILE = "uploading.json"
EVERY_S = 0.5
_MOST_PIDS = 2**31


@dataclass(frozen=True, slots=True)
class Uploading:
    """One look at the worker."""

    pid: int
    """Of the worker."""
    at: float
    """When it was written, seconds of the epoch."""
    checkpoint: str = ""
    """What is being uploaded; empty if nothing is."""
    began: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    waiting: int = 0
    """Checkpoints behind it that the store does not have."""
    error: str = ""
    """Why the last try failed; empty if it did not."""

    @property
    def alive(self) -> bool:
        """Whether that worker still runs on this machine, so far as can be told."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


class UploadMeter:
    """Keeps the file. `add` is called by several threads, the others by one at a time."""

    def __init__(self, root: Path) -> None:
        self._file = root / DOT_DIR / FILE
        self._lock = threading.Lock()
        self._now = Uploading(os.getpid(), time.time())
        self._next = 0.0

    def begin(self, checkpoint: str, total: int, waiting: int) -> None:
        """An upload of `total` bytes begins."""
        now = time.time()
        with self._lock:
            self._now = Uploading(os.getpid(), now, checkpoint, now, 0, total, waiting)
            self._write()

    def add(self, count: int) -> None:
        """So many bytes more are sent."""
        with self._lock:
            facts = asdict(self._now)
            facts["bytes_done"] = min(self._now.bytes_done + count, self._now.bytes_total)
            self._now = Uploading(**facts)
            if time.monotonic() >= self._next:
                self._write()

    def end(self, error: str = "") -> None:
        """It is there, or failed; what waits is not known any more."""
        with self._lock:
            waiting = self._now.waiting + bool(error)
            self._now = Uploading(os.getpid(), time.time(), waiting=waiting, error=error[:1000])
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + EVERY_S
        said = json.dumps({**asdict(self._now), "at": time.time()}).encode("ascii")
        with contextlib.suppress(OSError):  # nobody watches a disk that is full
            replace_small(self._file, said, durable=False)


def read_uploading(root: Path) -> Uploading | None:
    """What the worker of that directory last said; None if it said nothing that can be read."""
    try:
        said = Uploading(**read_json(root / DOT_DIR / FILE, RECORD))
    except (OSError, ValueError, TypeError):
        return None
    numbers: tuple[Any, ...] = (
        said.pid,
        said.at,
        said.began,
        said.bytes_done,
        said.bytes_total,
        said.waiting,
    )
    whole = all(type(number) in {int, float} for number in numbers)
    texts: tuple[Any, ...] = (said.checkpoint, said.error)
    whole = whole and all(isinstance(text, str) for text in texts)
    return said if whole and 0 < int(said.pid) < _MOST_PIDS else None
