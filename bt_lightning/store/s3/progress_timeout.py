"""How long a peer is waited for: as long as it makes progress, which its own system tells.

What the kernel took from us says nothing: it may hold megabytes that a slow link carries for
minutes. What the peer has acknowledged is gone from its queue, and that queue can be asked for.
"""

from __future__ import annotations

import array
import fcntl
import http.client
import io
import math
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_LOOK_S: Final = 1.0
_LONGEST_S: Final = 600.0
_HEAD_BYTES: Final = 1024 * 1024
"""Bytes of an answer besides its body; servers send a few hundred."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one answer may take."""

    body_bytes: int
    """Bytes of its body; not many more are read."""
    most_s: float = math.inf
    """Seconds from its first byte on."""
    slowest: float = 256.0
    """Bytes a second: what is never quiet, but comes slower than this, is given up. 0 for answers
    of servers that send single bytes while they work."""


class TooSlow(TimeoutError):  # noqa: N818 - by what it is
    """An answer that is never quiet for long, and never there."""

    def __init__(self, came: int) -> None:
        super().__init__(f"the answer came too slowly, {came:,} bytes of it")


class ProgressTimeout:
    """The waiting of one exchange on one connection; one thread uses it."""

    def __init__(
        self,
        sock: socket.socket,
        quiet_s: float,
        allowance: Allowance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`quiet_s` is how long a peer may make no progress."""
        self._sock = sock
        self._quiet_s = quiet_s
        self._allowance = allowance
        self._clock = clock
        self._began = self._progress = clock()
        self._queued = 0
        self._answer = 0.0
        self.came = 0
        """Bytes of the answer."""

    def look_s(self) -> float:
        """Seconds to wait before the next look.

        Raises `TimeoutError` if nothing is to be hoped for.
        """
        now, queued = self._clock(), unacknowledged(self._sock)
        if queued < self._queued:
            self._progress = now
        self._queued = queued
        left = self._allowed_s() - (now - self._progress)
        if left <= 0:
            raise TimeoutError(self._reproach())
        if self.came:
            whole = self._whole_s() - (now - self._answer)
            if whole <= 0:
                raise TooSlow(self.came)
            left = min(left, whole)
        return min(left, _LOOK_S)

    def took(self) -> None:
        """Take note that the kernel took bytes: it had room, so the peer has got others."""
        self._progress = self._clock()
        self._queued = unacknowledged(self._sock)

    def got(self, count: int) -> None:
        """Take note of bytes of the answer.

        Raises `http.client.HTTPException` when they are more than was asked for.
        """
        self._progress = self._clock()
        if not self.came:
            self._answer = self._progress
        self.came += count
        if self.came > self._allowance.body_bytes + _HEAD_BYTES:
            msg = f"more than the {self._allowance.body_bytes:,} bytes that were asked for came"
            raise http.client.HTTPException(msg)

    def _allowed_s(self) -> float:
        """What lies in buffers behind the peer goes as slow as the rest did: as long once more."""
        sending_s = 0.0 if self.came else self._progress - self._began
        return max(self._quiet_s, min(sending_s, _LONGEST_S))

    def _whole_s(self) -> float:
        slowest = self._allowance.slowest
        paced = self._quiet_s + self.came / slowest if slowest else math.inf
        return min(self._allowance.most_s, paced)

    def _reproach(self) -> str:
        if self._queued:
            return f"the server took nothing for {self._allowed_s():.0f} s"
        return f"the server did not answer for {self._allowed_s():.0f} s"


class Arriving(io.RawIOBase):
    """The bytes of an answer as they come; `held` keeps the connection open until it is read."""

    def __init__(self, sock: socket.socket, held: io.RawIOBase, patience: ProgressTimeout) -> None:
        self._sock = sock
        self._held = held
        self._patience = patience

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait for some bytes; 0 at the end."""
        while True:
            self._sock.settimeout(self._patience.look_s())
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                continue
            self._patience.got(count)
            return count

    def close(self) -> None:
        """Let go of the connection."""
        self._held.close()
        super().close()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that were handed to the kernel and that the peer's has not acknowledged."""
    value = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, value)
    return value[0]
