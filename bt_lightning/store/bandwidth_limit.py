"""The limit on upload bandwidth that all connections of a store share. Pure: clocks are passed."""

from __future__ import annotations

import threading
from typing import Final

_PIECE_S: Final = 0.25
_LEAST_PIECE: Final = 16 * 1024


class Bandwidth:
    """A limit of `rate` bytes a second for all connections together; called by any thread."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at: float | None = None
        self._lock = threading.Lock()

    def take(self, most: int, now: float) -> tuple[int, float]:
        """Reserve up to `most` bytes; return how many, and the seconds to wait before sending them.

        The pieces are small enough that no connection is idle for long: servers close idle ones.
        """
        size = min(most, max(_LEAST_PIECE, int(self._rate * _PIECE_S)))
        with self._lock:
            return size, self._reserved(size, now)

    def take_all(self, size: int, now: float) -> float:
        """Reserve all of `size` bytes; return the seconds to wait before sending them."""
        with self._lock:
            return self._reserved(size, now)

    def _reserved(self, size: int, now: float) -> float:
        start = now if self._free_at is None else max(now, self._free_at)
        self._free_at = start + size / self._rate
        return start - now
