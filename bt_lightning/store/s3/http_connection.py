"""HTTP/1.1 over kept connections: bodies are sent from, and read into, the caller's memory.

`http.client` copies neither. A peer that makes progress is waited for, so a slow link does not time
out (`progress_timeout`); an answer without end, or one that comes too slowly, is an error.
"""

from __future__ import annotations

import base64
import collections
import functools
import http.client
import io
import select
import socket
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

from bt_lightning.store.s3.progress_timeout import Allowance, ProgressTimeout
from bt_lightning.store.s3.request_errors import Failure, Hostile
from bt_lightning.store.s3.socket_transfer import AnswerReader, send_body
from bt_lightning.store.transfer.parallel_reads import fill

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from urllib.parse import SplitResult

    from bt_lightning.store.interface import Lent, ReadProgress

SMALL: Final = Allowance(64 * 1024, most_s=300.0)
"""For answers without content, and for errors."""
_GOOD: Final = frozenset({200, 206})
_IDLE_S: Final = 15.0
"""A kept connection is reused within this time: servers close idle ones after 20 s or more."""

Connection = http.client.HTTPConnection


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A signed request. URL and headers are secrets: they carry the signature."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """Header names are in lower case."""
    body: bytes
    """The body, cut off at the allowed size; empty if it went into the caller's memory."""
    filled: int = 0
    """Bytes that went into the caller's memory."""
    cut: bool = False
    """Whether the body is longer than the allowed size."""


@dataclass(frozen=True, slots=True)
class BodyTarget:
    """The caller's memory for the body of a successful answer."""

    targets: Sequence[memoryview]
    on_progress: ReadProgress
    """As for `Store.read_into`."""


@dataclass(frozen=True, slots=True)
class Network:
    """How the endpoint is reached."""

    connect_s: float
    read_s: float
    tls: Callable[[], ssl.SSLContext]
    proxies: Mapping[str, str]
    """Scheme -> URL of the proxy, for this endpoint."""


class HttpConnections:
    """Kept connections to one endpoint. Any thread may call; each exchange has a connection."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._idle: collections.deque[tuple[str, float, Connection]] = collections.deque()
        weakref.finalize(self, _close_all, self._idle)

    def exchange(
        self,
        signed: SignedRequest,
        body: Lent | None = None,
        into: BodyTarget | None = None,
        throttle: Callable[[int], int] = int,
        allowance: Allowance = SMALL,
    ) -> Reply:
        """Send one request and read its answer; a successful body goes `into` memory.

        Without `into`, and for errors, at most `allowance.body_bytes` are read. Redirects are not
        followed.

        `throttle` is called with a number of bytes before they are sent; it may wait or raise, and
        returns how many of them may be sent.

        Raises:
            OSError: the connection could not be made, broke, or made no progress.
            http.client.HTTPException: the answer was cut off.
            Hostile: the answer is not HTTP, or has no end.
        """
        url = urlsplit(signed.url)
        connection, fresh, target = self._connection(url)
        kept = False
        try:
            if fresh:
                _connect(connection, url)
            assert connection.sock is not None
            connection.sock.settimeout(self._network.read_s)
            progress = ProgressTimeout(
                connection.sock, self._network.read_s, _allowed(allowance, into)
            )
            try:
                _send_head(connection, signed, target, body.size if body else 0)
                connection.sock.settimeout(0)
                if body is not None:
                    send_body(connection.sock, body, throttle, progress)
            except (BrokenPipeError, ConnectionResetError):
                if not _readable(connection):
                    raise
                # the server answered before it took the whole body: the answer says why
            answer = functools.partial(_Response, progress)
            connection.response_class = cast("type[http.client.HTTPResponse]", answer)
            with connection.getresponse() as response:
                reply = _read(response, into, allowance.body_bytes)
                kept = response.isclosed() and not response.will_close
        except (http.client.IncompleteRead, http.client.BadStatusLine):
            raise  # the answer was cut off
        except http.client.HTTPException as error:
            msg = f"the answer has no end, or is not HTTP: {error}"
            raise Hostile(msg) from None
        finally:
            if kept:
                with self._lock:
                    self._idle.append((_origin(url), time.monotonic(), connection))
            else:
                connection.close()
        return reply

    def _connection(self, url: SplitResult) -> tuple[Connection, bool, str]:
        """A connection, whether it is not connected yet, and the request target to send on it."""
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        proxy = self._network.proxies.get(url.scheme)
        if proxy and url.scheme == "http":
            target = url.geturl()
        origin = _origin(url)
        stale = time.monotonic() - _IDLE_S
        with self._lock:
            while self._idle:
                kept_for, since, connection = self._idle.pop()
                if kept_for == origin and since > stale and not _readable(connection):
                    return connection, False, target
                connection.close()
        return self._opened(url, proxy), True, target

    def _opened(self, url: SplitResult, proxy: str | None) -> Connection:
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else url
        if proxy and through.scheme != "http":
            msg = f"a proxy that is reached by {through.scheme}:// is not supported: use http://"
            raise Failure(msg, transient=False)
        assert through.hostname is not None
        timeout = self._network.connect_s
        if url.scheme != "https":
            return _Plain(through, timeout)
        with self._lock:
            self._tls = self._tls or self._network.tls()
        connection = http.client.HTTPSConnection(
            through.hostname, through.port, timeout=timeout, context=self._tls
        )
        if proxy:
            assert url.hostname is not None
            connection.set_tunnel(url.hostname, url.port or 443, proxy_headers(through))
        return connection


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """The `Proxy-Authorization` header for the user in a proxy's URL; empty without a user."""
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode("ascii")}


class _Response(http.client.HTTPResponse):
    """An answer whose bytes are read with a `ProgressTimeout`."""

    def __init__(
        self, progress: ProgressTimeout, sock: socket.socket, *args: Any, **options: Any
    ) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(AnswerReader(sock, self.fp.detach(), progress))


class _Plain(http.client.HTTPConnection):
    """A connection without TLS, to the endpoint or to a forwarding proxy."""

    def __init__(self, url: SplitResult, timeout: float) -> None:
        assert url.hostname is not None
        super().__init__(url.hostname, url.port, timeout=timeout)
        self.extra = proxy_headers(url)


def _origin(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc}"


def _connect(connection: Connection, url: SplitResult) -> None:
    """Connect; an error names the endpoint, which the kernel's message does not."""
    try:
        connection.connect()
    except (ConnectionError, socket.gaierror) as error:
        endpoint = f"{url.scheme}://{url.hostname}:{url.port or connection.port}"
        raise type(error)(error.errno, f"{error.strerror or error} ({endpoint})") from error


def _readable(connection: Connection) -> bool:
    """Whether an idle connection can be read: then the server has closed it."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _allowed(allowance: Allowance, into: BodyTarget | None) -> Allowance:
    """The allowance; a body that goes into memory may be as large as that, and take longer."""
    if into is None:
        return allowance
    return Allowance(max(allowance.body_bytes, sum(map(len, into.targets))))


def _send_head(connection: Connection, signed: SignedRequest, target: str, size: int) -> None:
    connection.putrequest(signed.method, target)
    for name, value in {**signed.headers, **getattr(connection, "extra", {})}.items():
        connection.putheader(name, value)
    if signed.method in {"PUT", "POST"}:
        connection.putheader("Content-Length", str(size))
    connection.endheaders()


def _read(response: http.client.HTTPResponse, into: BodyTarget | None, most_bytes: int) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    if into is None or response.status not in _GOOD:
        most = most_bytes if response.status in _GOOD else SMALL.body_bytes
        body = response.read(most + 1)
        if len(body) <= most and response.length:
            raise http.client.IncompleteRead(body)
        return Reply(response.status, headers, body[:most], cut=len(body) > most)
    filled = fill(into.targets, response.readinto, into.on_progress)
    if not response.length:
        response.read(1)  # reads the end of a chunked body, so that the connection can be kept
    return Reply(response.status, headers, b"", filled)


def _close_all(idle: collections.deque[tuple[str, float, Connection]]) -> None:
    while idle:
        idle.pop()[2].close()
