"""Bytes of a body from the caller's memory to a socket, and from a socket to that memory.

The socket never waits (`settimeout(0)`): it is polled, with the limits of a `ProgressTimeout`.
So OpenSSL encrypts straight from memory that its owner may reclaim between two tries.
"""

from __future__ import annotations

import io
import select
import ssl
from typing import TYPE_CHECKING, cast

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bt_lightning.store.interface import Lent
    from bt_lightning.store.s3.progress_timeout import ProgressTimeout


def send_body(
    sock: socket.socket, body: Lent, throttle: Callable[[int], int], progress: ProgressTimeout
) -> None:
    """Send all of `body`; `throttle` is as in `HttpConnections.exchange`.

    Raises `TimeoutError` when the peer makes no progress, and `OSError`.
    """
    start = 0
    while start < body.size:
        ahead = min(BLOCK_BYTES - start % BLOCK_BYTES, body.size - start)
        stop = start + throttle(ahead)
        while start < stop:
            start += _send_some(sock, body, start, stop, progress)


def _send_some(
    sock: socket.socket, body: Lent, start: int, stop: int, progress: ProgressTimeout
) -> int:
    """Give the kernel as many bytes as it takes without waiting; return how many were sent.

    Over TLS that is all or none: OpenSSL requires the same bytes again, and knows how far it came.
    """
    if not _ready(sock, select.POLLOUT, progress):
        return 0
    with body.view(start, stop) as piece:
        try:
            sent = sock.send(piece)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
    progress.sent()
    return sent


class AnswerReader(io.RawIOBase):
    """The bytes of an answer as they come; `held` keeps the connection open until all are read."""

    def __init__(self, sock: socket.socket, held: io.RawIOBase, progress: ProgressTimeout) -> None:
        self._sock = sock
        self._held = held
        self._progress = progress

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait for some bytes; 0 at the end."""
        while True:
            count = _received(self._sock, buffer)
            if count is not None:
                self._progress.received(count)
                return count
            _ready(self._sock, select.POLLIN, self._progress)

    def close(self) -> None:
        """Release the connection."""
        self._held.close()
        super().close()


def _received(sock: socket.socket, buffer: memoryview) -> int | None:
    """Fill `buffer` with what has arrived: number of bytes; 0 at the end, None if nothing has."""
    if isinstance(sock, ssl.SSLSocket):
        return _decrypted(sock, buffer)
    try:
        return sock.recv_into(buffer)
    except BlockingIOError:
        return None


def _decrypted(sock: ssl.SSLSocket, buffer: memoryview) -> int | None:
    """As `_received`, over TLS: OpenSSL gives one record of at most 16 KiB a call."""
    read = cast("Callable[[int, memoryview], int]", sock.read)  # with a buffer it returns a number
    count, size = 0, len(buffer)
    try:
        while count < size:
            more = read(size - count, buffer[count:])
            if not more:
                break
            count += more
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return count or None
    return count


def _ready(sock: socket.socket, event: int, progress: ProgressTimeout) -> bool:
    """Wait for `event`; False if it is time to look again, whatever OpenSSL waits for.

    Raises `TimeoutError` when the peer makes no progress.
    """
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(1000 * progress.next_check_s()))
