"""Detects dead ranks by a TCP connection from each rank to rank 0.

The kernel closes the connection when a process dies. A process that is stopped, or that holds the
GIL for minutes, keeps it: it is slow, not dead. Keep-alive packets detect a lost machine. A broken
connection is made again; a rank counts as lost only if it stays broken.

The connection also carries a bell: a byte that says only that the key-value store has news, so that
nobody asks the store again and again. One that does not arrive costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import selectors
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_RECONNECT_S = 2.0
"""Seconds after which a broken connection counts as a lost rank."""
_TRIES = 5
_CONNECT_S = 2.0
_SPARE_CONNECTIONS = 16
_GOODBYE = b"."
_BELL = b"!"
_TOKEN = 16
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class LivenessListener:
    """Rank 0's end of all connections; all methods but `ring` are called on one thread."""

    def __init__(self, host: str, ranks: int, heard: Callable[[], None] = lambda: None) -> None:
        """Listen on `host`, the name of this machine on the other ranks; raises OSError.

        `heard` is called when another rank has rung.
        """
        self._ranks = ranks
        self._heard = heard
        self._token = secrets.token_bytes(_TOKEN)
        self._listener = _listen(host)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pending: dict[socket.socket, bytes] = {}
        self._connections: dict[socket.socket, int] = {}
        self._broken: dict[int, float] = {}

    @property
    def address(self) -> str:
        """The port and a secret token, to be passed to the other ranks only."""
        return f"{self._listener.getsockname()[1]} {self._token.hex()}"

    def poll(self, timeout_s: float) -> None:
        """Handle connections and their ends for at most `timeout_s` seconds."""
        for key, _ in self._selector.select(timeout_s):
            ready: Any = key.fileobj
            if ready is self._listener:
                self._accept()
            else:
                self._receive(ready)

    @property
    def is_complete(self) -> bool:
        """Whether every other rank hears this one, and this one every other."""
        return len(self._connections) == self._ranks - 1

    def ring(self) -> None:
        """Let every other rank look at the store; called on any thread."""
        for connection in list(self._connections):
            _ring(connection)

    def lost(self) -> int | None:
        """The number of a rank that is gone; None if there is none."""
        now = time.monotonic()
        return next((r for r, at in self._broken.items() if now - at > _RECONNECT_S), None)

    def close(self) -> None:
        """Announce a regular end and close the connections."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(_GOODBYE)
        for connection in (*self._connections, *self._pending, self._listener):
            connection.close()
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the other end has closed the connection
            connection, _ = self._listener.accept()
            if len(self._pending) >= self._ranks + _SPARE_CONNECTIONS:
                connection.close()
                return
            _prepare(connection)
            connection.settimeout(0)
            self._pending[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if connection in self._connections:
            if not data:
                self._broken[self._connections.pop(connection)] = time.monotonic()
            elif _GOODBYE in data:
                del self._connections[connection]
            else:
                self._heard()
                return
            self._drop(connection)
            return
        hello = self._pending[connection] + data
        self._pending[connection] = hello
        if data and len(hello) < _TOKEN + 4:
            return
        del self._pending[connection]
        token, rank = hello[:_TOKEN], int.from_bytes(hello[_TOKEN : _TOKEN + 4], "big")
        if len(hello) < _TOKEN + 4 or not hmac.compare_digest(token, self._token):
            self._drop(connection)
            return
        self._connections[connection] = rank
        self._broken.pop(rank, None)
        _ring(connection)  # it may have missed one
        self._heard()

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


class LivenessCaller:
    """The other ranks' end of the connection; all methods but `ring` are called on one thread."""

    def __init__(
        self, host: str, address: str, rank: int, heard: Callable[[], None] = lambda: None
    ) -> None:
        """`heard` is called when rank 0 has rung."""
        port, token = address.split()
        self._heard = heard
        self._rank_0_address = host, int(port)
        self._hello = bytes.fromhex(token) + rank.to_bytes(4, "big")
        self._connection: socket.socket | None = None
        self._tries = _TRIES
        self._broken: float | None = None
        self._ended = False

    def poll(self, timeout_s: float) -> None:
        """Connect to rank 0 if necessary; otherwise wait up to `timeout_s` for its end."""
        if self._connection is not None:
            self._listen(self._connection, timeout_s)
            return
        if not self._ended and self._tries > 0:
            self._connect()
        time.sleep(timeout_s)

    @property
    def is_complete(self) -> bool:
        """Whether rank 0 hears this one, and this one hears rank 0."""
        return self._connection is not None

    def ring(self) -> None:
        """Let rank 0 look at the store; called on any thread."""
        connection = self._connection
        if connection is not None:
            _ring(connection)

    def lost(self) -> int | None:
        """0 if rank 0 is gone, else None."""
        gone = self._broken is not None and time.monotonic() - self._broken > _RECONNECT_S
        return 0 if gone else None

    def close(self) -> None:
        """Announce a regular end and close the connections."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(_GOODBYE)
            self._connection.close()

    def _connect(self) -> None:
        try:
            connection = socket.create_connection(self._rank_0_address, _CONNECT_S)
        except OSError:
            if self._broken is None:
                self._tries -= 1  # a firewall, perhaps: then a death of rank 0 is not detected
            return
        _prepare(connection)
        try:
            connection.sendall(self._hello)
        except OSError:
            connection.close()
            return
        self._connection, self._broken = connection, None

    def _listen(self, connection: socket.socket, timeout_s: float) -> None:
        connection.settimeout(max(timeout_s, 1e-3))
        try:
            data = connection.recv(64)
        except TimeoutError:
            return
        except OSError:
            data = b""
        self._ended = _GOODBYE in data
        if not data or self._ended:
            connection.close()
            self._connection = None
            self._broken = None if self._ended else time.monotonic()
        else:
            self._heard()


def _listen(host: str) -> socket.socket:
    """A listening socket on the local address of `host`, or on all addresses if it is not local."""
    listener: socket.socket | None = None
    with contextlib.suppress(OSError):
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((where[0], 0), family=family)
    if listener is None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
    listener.settimeout(0)
    _sockets.add(listener)
    return listener


def _ring(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed, or full of bells that nobody has heard yet
        connection.send(_BELL, socket.MSG_DONTWAIT)


def _prepare(connection: socket.socket) -> None:
    """Turn on keep-alive packets, which detect a lost machine in about ten seconds."""
    _sockets.add(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _close_in_child() -> None:
    """Close the connections in a forked child (a dataloader's), which would keep them open."""
    for connection in list(_sockets):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)
