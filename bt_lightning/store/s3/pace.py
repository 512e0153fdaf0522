"""How many parts are under way at a time, and how many bytes a second. Pure: clocks are passed."""

from __future__ import annotations

from typing import Final

START: Final = 4
MOST: Final = 16
_WORTH: Final = 1.1
"""Twice the connections must carry this much more, or half of them do as well."""
_CALM_PARTS: Final = 32
"""Parts without a complaint after which one more connection is tried."""


class Pace:
    """Finds the number of connections. One lock of the caller's guards it.

    It doubles them as long as that carries more, and halves them when the server asks for less.
    """

    def __init__(self, start: int = START, most: int = MOST) -> None:
        self.width = start
        """Connections to use now."""
        self._most = most
        self._climbing = True
        self._before: tuple[int, float] | None = None
        self._halved_at: float | None = None
        self._calm = 0
        self._begin()

    def _begin(self) -> None:
        self._ignore = self.width  # these were begun at the width before
        self._parts = 0
        self._bytes = 0
        self._since = 0.0

    def finished(self, size: int, now: float) -> None:
        """Take note of a part of `size` bytes that arrived at `now`, in seconds of any clock."""
        if not self._climbing:
            self._recover()
            return
        if self._ignore:
            self._ignore -= 1
            self._since = now
            return
        self._parts += 1
        self._bytes += size
        if self._parts >= self.width:
            self._judge(self._bytes / max(now - self._since, 1e-9))

    def _judge(self, rate: float) -> None:
        if self._before is not None and rate < self._before[1] * _WORTH:
            self.width = self._before[0]
            self._climbing = False
            return
        self._before = (self.width, rate)
        self._climbing = self.width < self._most
        self.width = min(2 * self.width, self._most)
        self._begin()

    def _recover(self) -> None:
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
        self._climbing = False
        self._halved_at = now
        self.width = max(1, self.width // 2)


class Bandwidth:
    """Bytes a second that may be sent. One lock of the caller's guards it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at: float | None = None

    def wait(self, size: int, now: float) -> float:
        """Take `size` bytes; return the seconds to wait before they are sent."""
        start = now if self._free_at is None else max(now, self._free_at)
        self._free_at = start + size / self._rate
        return start - now
