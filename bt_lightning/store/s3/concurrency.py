"""How many parts are under way at a time. Pure: clocks are passed."""

from __future__ import annotations

from typing import Final

START: Final = 4
MOST: Final = 16
_CALM_PARTS: Final = 32
"""Parts without a complaint after which one more connection is tried."""
_FLIGHT_S: Final = 10.0
"""Parts under way are cut off by a kill: no more of them than the link carries in this time."""
_LOOK_S: Final = 0.1
_BUFFERED: Final = 8 * 1024 * 1024
"""Bytes of a connection that the systems at both ends take before anything was carried."""
_FAST: Final = 256e6
"""Bytes a second of a connection that the processors limit, and not the link."""


class Concurrency:
    """Finds the number of connections. One lock of the caller's guards it.

    Stores give each connection a share, so many are needed, and on a slow link few. It begins with
    a few, and takes as many more as the link carries; it halves them when the server asks for less.
    """

    def __init__(self, part_bytes: int, start: int = START, most: int = MOST) -> None:
        """`part_bytes` is what each connection sends at a time."""
        self.width = start
        """Connections to use now."""
        self._part_bytes = part_bytes
        self._most = most
        self._sent = 0
        self._since: float | None = None
        self._halved_at: float | None = None
        self._calm = 0

    def sent(self, size: int, now: float) -> bool:
        """Take note of `size` bytes handed over at `now`, in seconds of any clock.

        Returns whether there may be more connections from now on.
        """
        if self._since is None:
            self._since = now
        self._sent += size
        passed = now - self._since
        if passed < _LOOK_S or self.width >= self._most or self._halved_at is not None:
            return False
        rate = (self._sent - self.width * _BUFFERED) / passed
        if rate > self.width * _FAST:
            return False
        width = min(self._most, int(rate * _FLIGHT_S / self._part_bytes))
        grown = width > self.width
        self.width = max(self.width, width)
        return grown

    def finished(self) -> None:
        """Take note of a part that arrived."""
        if self._halved_at is None:
            return
        self._calm += 1
        if self._calm >= _CALM_PARTS:
            self._calm = 0
            self.width = min(self.width + 1, self._most)

    def slow_down(self, began: float, now: float) -> None:
        """The server asked for less, in answer to a request of `began`.

        Answers to requests that were under way when the number was halved say nothing new.
        """
        self._calm = 0
        if self._halved_at is not None and began < self._halved_at:
            return
        self._halved_at = now
        self.width = max(1, self.width // 2)
