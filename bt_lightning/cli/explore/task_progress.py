"""The progress of a long action: bytes done by any thread, rate, time left, and its cancelling."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.human_units import human_duration, human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BAR = 16
_SETTLED_S = 1.0
"""Seconds until the rate says something."""


class CancelledByUserError(Exception):
    """Ends an action at its next read or write; what is half done is left as an interruption."""


class TaskProgress:
    """Bytes done of an action that runs in another thread."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self._total = title, total
        self._done = 0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the user asked for its end."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask for its end; called by the thread of the screen."""
        self._cancelled.set()

    def on_bytes(self, count: int) -> None:
        """Count bytes; called by any thread that reads or writes.

        Raises:
            CancelledByUserError: the user asked for the end.
        """
        if self._cancelled.is_set():
            raise CancelledByUserError(self.title)
        with self._lock:
            self._done += count

    @contextlib.contextmanager
    def of(self, total: int) -> Iterator[Callable[[int], None]]:
        """Count from zero to another total: what is to be read is known by now."""
        with self._lock:
            self._done, self._total, self._began = 0, total, time.monotonic()
        yield self.on_bytes

    def line(self, width: int) -> str:
        """What to say of it in so many columns."""
        with self._lock:
            done, total = self._done, self._total
        seconds = time.monotonic() - self._began
        if self.is_cancelled:
            return f"{self.title}: ends after what is under way ..."[:width]
        parts = []
        if total:
            part = min(1.0, done / total)
            full = round(part * _BAR)
            parts.append(f"{'█' * full}{'░' * (_BAR - full)} {part:4.0%}")
            parts.append(f"{human_size(done)} of {human_size(total)}")
        elif done:
            parts.append(human_size(done))
        if seconds >= _SETTLED_S and done:
            parts.append(f"{human_size(done / seconds)}/s")
            if total > done:
                parts.append(f"{human_duration((total - done) * seconds / done)} left")
        while parts and len(self.title) + sum(map(len, parts)) + 2 * len(parts) + 18 > width:
            parts.pop()
        return "  ".join([self.title, *parts, "ctrl+x cancels"])[:width]
