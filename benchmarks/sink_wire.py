"""HTTP as the sink reads it: one connection, its requests, their bodies in either chunked form."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 1024 * 1024


class Wire:
    """One connection: its bytes in order, at no more than `cap` bytes a second."""

    def __init__(self, connection: socket.socket, cap: float) -> None:
        self.socket = connection
        self.cap = cap
        self.plain = not isinstance(connection, ssl.SSLSocket)
        self.buffer = memoryview(bytearray(PIECE))
        self.left = b""
        self.due = 0.0

    def head(self) -> bytes:
        """Everything up to the empty line; empty if the client is gone."""
        while b"\r\n\r\n" not in self.left:
            more = self.socket.recv(65536)
            if not more:
                return b""
            self.left += more
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        return head

    def take(self, limit: int) -> memoryview:
        """The next bytes, at most `limit`; good until the next call."""
        if self.left:
            piece, self.left = self.left[:limit], self.left[limit:]
            return memoryview(piece)
        wanted = self.buffer[: min(limit, PIECE)]
        count = self.socket.recv_into(wanted, 0, socket.MSG_WAITALL if self.plain else 0)
        if not count:
            raise ConnectionResetError
        self.pace(count)
        return wanted[:count]

    def pace(self, count: int) -> None:
        if self.cap:
            now = time.monotonic()
            self.due = max(self.due, now - 0.05) + count / self.cap
            time.sleep(max(0.0, self.due - now))


class Sized:
    """A body of known length."""

    def __init__(self, inner: Wire, size: int) -> None:
        self.inner, self.left = inner, size

    def take(self, limit: int) -> memoryview:
        piece = self.inner.take(min(limit, self.left)) if self.left else memoryview(b"")
        self.left -= len(piece)
        return piece


class Chunked:
    """A body in chunks, each after a line with its length: HTTP's own, and `aws-chunked`."""

    def __init__(self, inner: Wire | Sized | Chunked) -> None:
        self.inner, self.left, self.ended, self.first = inner, 0, False, True

    def line(self) -> bytes:
        found = b""
        while not found.endswith(b"\r\n"):
            piece = bytes(self.inner.take(1))
            if not piece:
                break
            found += piece
        return found.strip()

    def take(self, limit: int) -> memoryview:
        if not self.left and not self.ended:
            if not self.first:
                self.line()  # that ends the chunk before; reading it sooner overwrites the piece
            self.first = False
            self.left = int(self.line().partition(b";")[0], 16)
            if not self.left:
                self.ended = True
                while self.line():  # trailers
                    pass
                while not isinstance(self.inner, Wire) and self.inner.take(PIECE):
                    pass  # what ends the outer form
        if self.ended:
            return memoryview(b"")
        piece = self.inner.take(min(limit, self.left))
        self.left -= len(piece)
        return piece


class Request:
    def __init__(self, head: bytes, wire: Wire) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, target, _ = first.split(" ", 2)
        parts = urlsplit(target)
        self.path = unquote(parts.path).strip("/")
        self.query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        pairs = (line.split(":", 1) for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, value in pairs}
        self.wire = wire
        body: Wire | Sized | Chunked
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = Chunked(wire)
        else:
            body = Sized(wire, int(self.headers.get("content-length", 0)))
        aws = self.headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        self.body: Sized | Chunked = Chunked(body) if aws else body

    def read(self) -> bytes:
        return b"".join(bytes(piece) for piece in iter(lambda: self.body.take(PIECE), b""))
