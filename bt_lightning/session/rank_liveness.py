"""A connection from each rank to rank 0, which the kernel ends when the process at one end dies.

A process that is stopped, or that holds the GIL for minutes, keeps its connection: it is slow, and
not gone. Keep-alive packets find out about a lost machine. A line that broke by itself is made
again; only one that stays broken says that somebody is gone.
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
from typing import Any

_AGAIN_S = 2.0
"""So long a broken line may be made again."""
_TRIES = 5
_CONNECT_S = 2.0
_STRANGERS = 16
_BYE = b"."
_TOKEN = 16
_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class LivenessListener:
    """Rank 0's end. All methods are one thread's."""

    def __init__(self, host: str, ranks: int) -> None:
        """Listen at `host`, which the other ranks know this machine by; raises OSError."""
        self._ranks = ranks
        self._token = secrets.token_bytes(_TOKEN)
        self._door = _listen(host)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door, selectors.EVENT_READ)
        self._hellos: dict[socket.socket, bytes] = {}
        self._lines: dict[socket.socket, int] = {}
        self._broken: dict[int, float] = {}

    @property
    def address(self) -> str:
        """Where to call, and what to say: for the other ranks alone."""
        return f"{self._door.getsockname()[1]} {self._token.hex()}"

    def look(self, timeout_s: float) -> None:
        """Wait for something to happen, at most so long, and take note of it."""
        for key, _ in self._selector.select(timeout_s):
            found: Any = key.fileobj
            if found is self._door:
                self._answer()
            else:
                self._hear(found)

    def lost(self) -> int | None:
        """A rank that is gone."""
        now = time.monotonic()
        return next((r for r, at in self._broken.items() if now - at > _AGAIN_S), None)

    def close(self) -> None:
        """Say that all is well, and hang up."""
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.send(_BYE)
        for line in (*self._lines, *self._hellos, self._door):
            line.close()
        self._selector.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):  # who called has hung up
            line, _ = self._door.accept()
            if len(self._hellos) >= self._ranks + _STRANGERS:
                line.close()
                return
            _prepare(line)
            line.settimeout(0)
            self._hellos[line] = b""
            self._selector.register(line, selectors.EVENT_READ)

    def _hear(self, line: socket.socket) -> None:
        try:
            said = line.recv(64)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if line in self._lines:
            if not said:
                self._broken[self._lines.pop(line)] = time.monotonic()
            elif _BYE in said:
                del self._lines[line]
            else:
                return
            self._drop(line)
            return
        hello = self._hellos[line] + said
        self._hellos[line] = hello
        if said and len(hello) < _TOKEN + 4:
            return
        del self._hellos[line]
        token, rank = hello[:_TOKEN], int.from_bytes(hello[_TOKEN : _TOKEN + 4], "big")
        if len(hello) < _TOKEN + 4 or not hmac.compare_digest(token, self._token):
            self._drop(line)
            return
        self._lines[line] = rank
        self._broken.pop(rank, None)

    def _drop(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        line.close()


class LivenessCaller:
    """The end of every other rank. All methods are one thread's."""

    def __init__(self, host: str, address: str, rank: int) -> None:
        port, token = address.split()
        self._where = host, int(port)
        self._hello = bytes.fromhex(token) + rank.to_bytes(4, "big")
        self._line: socket.socket | None = None
        self._tries = _TRIES
        self._broken: float | None = None
        self._ended = False

    def look(self, timeout_s: float) -> None:
        """Call rank 0 if there is no line; else wait for its end, at most so long."""
        if self._line is not None:
            self._listen(self._line, timeout_s)
            return
        if not self._ended and self._tries > 0:
            self._call()
        time.sleep(timeout_s)

    def lost(self) -> int | None:
        """0 if rank 0 is gone."""
        gone = self._broken is not None and time.monotonic() - self._broken > _AGAIN_S
        return 0 if gone else None

    def close(self) -> None:
        """Say that all is well, and hang up."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send(_BYE)
            self._line.close()

    def _call(self) -> None:
        try:
            line = socket.create_connection(self._where, _CONNECT_S)
        except OSError:
            if self._broken is None:
                self._tries -= 1  # there may be a wall: then a death is not noticed
            return
        _prepare(line)
        try:
            line.sendall(self._hello)
        except OSError:
            line.close()
            return
        self._line, self._broken = line, None

    def _listen(self, line: socket.socket, timeout_s: float) -> None:
        line.settimeout(max(timeout_s, 1e-3))
        try:
            said = line.recv(64)
        except TimeoutError:
            return
        except OSError:
            said = b""
        self._ended = _BYE in said
        if not said or self._ended:
            line.close()
            self._line = None
            self._broken = None if self._ended else time.monotonic()


def _listen(host: str) -> socket.socket:
    """A door at the address that `host` has here; at all addresses if it has none (NAT)."""
    door: socket.socket | None = None
    with contextlib.suppress(OSError):
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        door = socket.create_server((where[0], 0), family=family)
    if door is None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        door = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
    door.settimeout(0)
    _open.add(door)
    return door


def _prepare(line: socket.socket) -> None:
    """A lost machine is found out about in some ten seconds."""
    _open.add(line)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _forget() -> None:
    """A forked child (of a dataloader) does not hold the lines of a parent that dies."""
    for line in list(_open):
        line.close()


os.register_at_fork(after_in_child=_forget)
