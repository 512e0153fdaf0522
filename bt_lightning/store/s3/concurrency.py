"""The number of parts of an upload that are sent at a time. Pure: clocks are passed."""

from __future__ import annotations

from typing import Final

START: Final = 4
MOST: Final = 16
_CALM_PARTS: Final = 32
"""Parts without a `SlowDown` after which one more connection is tried."""
_FLIGHT_S: Final = 10.0
"""A kill loses the parts in flight: so no more are in flight than the link carries in this time."""
_CHECK_S: Final = 0.1
_BUFFERED: Final = 8 * 1024 * 1024
"""Bytes of a connection that may lie in the socket buffers of both ends, not yet transferred."""
_FAST: Final = 256e6
"""Bytes a second of one connection above which the CPU is the limit, not the link."""


class Concurrency:
    """Finds the number of connections for an upload; the caller's lock guards it.

    Stores limit the bandwidth of a connection, so many are needed, but few on a slow link. It
    starts with a few and adds as many as the link can fill; `SlowDown` halves the number.
    """

    def __init__(self, part_bytes: int, start: int = START, most: int = MOST) -> None:
        """`part_bytes` is the size of a part."""
        self.width = start
        """Connections to use now."""
        self._part_bytes = part_bytes
        self._most = most
        self._sent = 0
        self._since: float | None = None
        self._halved_at: float | None = None
        self._calm = 0

    def sent(self, size: int, now: float) -> bool:
        """Record `size` bytes given to the kernel at `now`, in seconds of a monotonic clock.

        Returns whether `width` has grown.
        """
        if self._since is None:
            self._since = now
        self._sent += size
        passed = now - self._since
        if passed < _CHECK_S or self.width >= self._most or self._halved_at is not None:
            return False
        rate = (self._sent - self.width * _BUFFERED) / passed
        if rate > self.width * _FAST:
            return False
        width = min(self._most, int(rate * _FLIGHT_S / self._part_bytes))
        grown = width > self.width
        self.width = max(self.width, width)
        return grown

    def finished(self) -> None:
        """Record a part that the server has confirmed."""
        if self._halved_at is None:
            return
        self._calm += 1
        if self._calm >= _CALM_PARTS:
            self._calm = 0
            self.width = min(self.width + 1, self._most)

    def slow_down(self, began: float, now: float) -> None:
        """Record a `SlowDown` in answer to a request that began at `began`.

        Answers to requests that began before the last halving do not halve again.
        """
        self._calm = 0
        if self._halved_at is not None and began < self._halved_at:
            return
        self._halved_at = now
        self.width = max(1, self.width // 2)
