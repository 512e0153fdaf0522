"""A timeout that counts only while the peer makes no progress.

The number of bytes that the kernel accepted says nothing: its send buffer may hold megabytes, which
a slow link carries for minutes. So progress is measured by what the peer acknowledged: the length
of the send queue (`SIOCOUTQ`).
"""

from __future__ import annotations

import array
import fcntl
import http.client
import math
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_CHECK_S: Final = 1.0
_LONGEST_S: Final = 600.0
_HEAD_BYTES: Final = 1024 * 1024
"""Bytes of an answer besides its body; servers send a few hundred."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The limits of one answer."""

    body_bytes: int
    """Bytes of the body; at most a megabyte more is read."""
    most_s: float = math.inf
    """Seconds from the answer's first byte to its end."""
    slowest: float = 256.0
    """Least rate in bytes a second; a slower answer is an error. 0 allows servers that send single
    bytes while they work."""


class TooSlow(TimeoutError):  # noqa: N818 - by what it is
    """An answer that never stops coming, but comes too slowly."""

    def __init__(self, came: int) -> None:
        super().__init__(f"the answer came too slowly, {came:,} bytes of it")


class ProgressTimeout:
    """The timeout of one exchange on one connection; used by one thread."""

    def __init__(
        self,
        sock: socket.socket,
        quiet_s: float,
        allowance: Allowance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`quiet_s` is the number of seconds that the peer may make no progress."""
        self._sock = sock
        self._quiet_s = quiet_s
        self._allowance = allowance
        self._clock = clock
        self._began = self._progress = clock()
        self._queued = 0
        self._answer = 0.0
        self.came = 0
        """Bytes of the answer so far."""

    def next_check_s(self) -> float:
        """Seconds to wait for the socket before this is called again.

        Raises `TimeoutError` if the peer has made no progress for too long.
        """
        now, queued = self._clock(), unacknowledged(self._sock)
        if queued < self._queued:
            self._progress = now
        self._queued = queued
        left = self._allowed_s() - (now - self._progress)
        if left <= 0:
            raise TimeoutError(self._message())
        if self.came:
            whole = self._whole_s() - (now - self._answer)
            if whole <= 0:
                raise TooSlow(self.came)
            left = min(left, whole)
        return min(left, _CHECK_S)

    def sent(self) -> None:
        """Record that the kernel accepted bytes: its buffer had room, so the peer took others."""
        self._progress = self._clock()
        self._queued = unacknowledged(self._sock)

    def received(self, count: int) -> None:
        """Record `count` bytes of the answer.

        Raises `http.client.HTTPException` when the answer is larger than its allowance.
        """
        self._progress = self._clock()
        if not self.came:
            self._answer = self._progress
        self.came += count
        if self.came > self._allowance.body_bytes + _HEAD_BYTES:
            msg = f"more than the {self._allowance.body_bytes:,} bytes that were asked for came"
            raise http.client.HTTPException(msg)

    def _allowed_s(self) -> float:
        """As long as the sending took: buffers behind the peer may drain at the same rate."""
        sending_s = 0.0 if self.came else self._progress - self._began
        return max(self._quiet_s, min(sending_s, _LONGEST_S))

    def _whole_s(self) -> float:
        slowest = self._allowance.slowest
        paced = self._quiet_s + self.came / slowest if slowest else math.inf
        return min(self._allowance.most_s, paced)

    def _message(self) -> str:
        if self._queued:
            return f"the server took nothing for {self._allowed_s():.0f} s"
        return f"the server did not answer for {self._allowed_s():.0f} s"


def unacknowledged(sock: socket.socket) -> int:
    """Bytes in the kernel's send queue that the peer has not acknowledged."""
    value = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, value)
    return value[0]
