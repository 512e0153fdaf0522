"""Send a request body over a socket, straight from the caller's memory."""

from __future__ import annotations

import select
import ssl
from typing import TYPE_CHECKING, Final

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bt_lightning.store.interface import Lent
    from bt_lightning.store.s3.progress_timeout import ProgressTimeout

_ENCRYPTED_BYTES: Final = 256 * 1024


def send_body(
    sock: socket.socket, body: Lent, throttle: Callable[[int], int], progress: ProgressTimeout
) -> None:
    """Send all of `body`; `throttle` is as in `HttpConnections.exchange`.

    Raises `TimeoutError` when the peer makes no progress, and `OSError`.
    """
    send = _send_encrypted if isinstance(sock, ssl.SSLSocket) else _send_plain
    start = 0
    while start < body.size:
        ahead = min(BLOCK_BYTES - start % BLOCK_BYTES, body.size - start)
        stop = start + throttle(ahead)
        send(sock, body, start, stop, progress)
        start = stop


def _send_encrypted(
    sock: socket.socket, body: Lent, start: int, stop: int, progress: ProgressTimeout
) -> None:
    """Send over TLS, from a copy: TLS may wait for the network in the middle of a write."""
    for first in range(start, stop, _ENCRYPTED_BYTES):
        with body.view(first, min(first + _ENCRYPTED_BYTES, stop)) as piece:
            rest = memoryview(bytes(piece))
        while rest:
            sock.settimeout(progress.next_check_s())
            try:
                rest = rest[sock.send(rest) :]
            except TimeoutError:
                continue  # OpenSSL requires the same bytes again; it knows how far it came
            progress.sent()


def _send_plain(
    sock: socket.socket, body: Lent, start: int, stop: int, progress: ProgressTimeout
) -> None:
    """Send without TLS: give the kernel as many bytes at a time as it accepts without waiting."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while start < stop:
        if not poll.poll(1000 * progress.next_check_s()):
            continue
        with body.view(start, stop) as piece:
            start += sock.send(piece)
        progress.sent()
