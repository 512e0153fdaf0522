"""Run botocore's client of a bucket over this package's connections, and renew its credentials.

The client signs in the event loop of s3fs. Its own HTTP client would follow redirects and read
answers without a limit. So each request is handed to the thread that called, which sends it through
`HttpConnections`, under its limits.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiobotocore.session
from aiobotocore.awsrequest import AioAWSResponse
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies

from bt_lightning.store.s3 import response_checks
from bt_lightning.store.s3.http_connection import (
    SMALL,
    HttpConnections,
    Network,
    Reply,
    SignedRequest,
)
from bt_lightning.store.secrets import with_spellings
from bt_lightning.store.transfer.file_source import HeldBytes

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from botocore.awsrequest import AWSPreparedRequest

    from bt_lightning.store.s3.progress_timeout import Allowance

T = TypeVar("T")

_CREDENTIALS_S: Final = 120.0
"""How long a source of credentials may take: a program of the user, or another server."""
_AGAIN_S: Final = 1.0
"""Least time between two renewals of credentials that did not change."""
_FILES: Final = ("credentials_file", "config_file")


class _RequestQueue:
    """Passes the client's requests from the event loop to the thread that called."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: queue.SimpleQueue[tuple[SignedRequest, bytes, asyncio.Future[Reply]] | None]
        self._asked = queue.SimpleQueue()

    async def send(self, signed: SignedRequest, body: bytes) -> Reply:
        """Have a request sent; called in the event loop."""
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._asked.put((signed, body, answer))
        return await answer

    def close(self, _: object = None) -> None:
        """Say that no more requests will come."""
        self._asked.put(None)

    def serve(self, exchange: Callable[[SignedRequest, bytes], Reply]) -> None:
        """Send the requests with `exchange` until the queue is closed; in the thread that called.

        Raises `TimeoutError` if no request comes for `_CREDENTIALS_S`.
        """
        while True:
            try:
                asked = self._asked.get(timeout=_CREDENTIALS_S)
            except queue.Empty:
                msg = f"no credentials came within {_CREDENTIALS_S:.0f} s"
                raise TimeoutError(msg) from None
            if asked is None:
                return
            signed, body, answer = asked
            try:
                reply = exchange(signed, body)
            except Exception as error:  # noqa: BLE001 - raised by `send`
                self._loop.call_soon_threadsafe(answer.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(answer.set_result, reply)


_requests: contextvars.ContextVar[_RequestQueue | None] = contextvars.ContextVar(
    "bt_lightning_requests", default=None
)


class BotocoreClient:
    """The botocore client of one bucket, and the renewal of it; called by several threads."""

    def __init__(self, filesystem: Any, bucket: str) -> None:
        """`filesystem` is an s3fs filesystem that nobody else uses."""
        self._fs = filesystem
        self._bucket = bucket
        self._own_session = filesystem.session is None
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._connections: HttpConnections | None = None
        self._known: tuple[str, str, str | None] | None = None
        self._loaded = False
        self._files: list[Path] = []
        """Files that credentials may come from."""
        self._stamps: list[object] = []
        self._renewed_at = -_AGAIN_S
        self.age = 0
        """Number of renewals of the credentials."""

    @property
    def has_token(self) -> bool:
        """Whether the credentials have a session token, so that they expire."""
        return self._known is not None and self._known[2] is not None

    @property
    def had_credentials(self) -> bool:
        """Whether credentials were found."""
        return self._known is not None

    @property
    def secrets(self) -> frozenset[str]:
        """Key, secret and token, as far as known, to be hidden in messages."""
        return with_spellings([one for one in self._known or () if one])

    def run(self, work: Callable[[Any], Awaitable[T]], allowance: Allowance = SMALL) -> T:
        """Await `work` with the client in its event loop; this thread sends the requests.

        Raises what `work` raises, and `TimeoutError`.
        """
        return self._in_loop(lambda: self._with_client(work), allowance)

    def renew(self, age: int | None = None) -> bool:
        """Load the credentials again if they are still those of `age`; return whether they changed.

        Credentials that are given as options are never renewed. Without `age`, renew only if a file
        of credentials changed.
        """
        with self._renewing:
            changed = self._stamps != self._stamps_now()
            if age is None and not changed:
                return False
            if age is not None and age != self.age:
                return True
            fixed = not self._own_session or self._fs.key or self._fs.anon
            now = time.monotonic()
            if fixed or (now < self._renewed_at + _AGAIN_S and not changed):
                return False
            try:
                renewed = self._in_loop(self._renewed, SMALL)
            except Exception:  # noqa: BLE001 - a half-written file: the old ones may still work
                renewed = False
            self._renewed_at = now
            self.age += renewed
            return renewed

    def connections(self) -> HttpConnections:
        """The connections to the endpoint."""
        with self._lock:
            if self._connections is None:
                self._connections = HttpConnections(self._in_loop(self._network, SMALL))
            return self._connections

    def _in_loop(self, act: Callable[[], Awaitable[T]], allowance: Allowance) -> T:
        requests = _RequestQueue(self._fs.loop)

        async def acting() -> T:
            _requests.set(requests)
            return await act()

        future = asyncio.run_coroutine_threadsafe(acting(), self._fs.loop)
        future.add_done_callback(requests.close)
        try:
            requests.serve(lambda signed, body: self._sent(signed, body, allowance))
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def _sent(self, signed: SignedRequest, body: bytes, allowance: Allowance) -> Reply:
        lent = HeldBytes(memoryview(body)) if body else None
        reply = self.connections().exchange(signed, lent, allowance=allowance)
        reply = response_checks.check_reply(reply)
        response_checks.count_tags(reply.body)
        return reply

    async def _with_client(self, work: Callable[[Any], Awaitable[T]]) -> T:
        await self._session_client()
        return await work(await self._fs.get_s3(self._bucket))

    async def _session_client(self) -> Any:
        """The session's client; a bucket in another region has one of its own."""
        if self._fs.session is None:
            self._fs.session = self._new_session()
        if not self._loaded:
            self._files = _config_files(self._fs.session)
            self._stamps = self._stamps_now()
            self._known = await self._found(self._fs.session)
            self._loaded = True
        return await self._fs.set_session()

    async def _renewed(self) -> bool:
        self._stamps = self._stamps_now()
        session = self._new_session()
        found = await self._found(session)
        if found is None or found == self._known:
            return False
        self._fs.session, self._fs._s3 = session, None  # noqa: SLF001 - `refresh` would use its own
        self._known = found
        await self._fs.set_session()
        return True

    def _new_session(self) -> Any:
        session = aiobotocore.session.AioSession(**self._fs.kwargs)
        session.register("before-send.s3", _send_by_caller)
        return session

    async def _found(self, session: Any) -> tuple[str, str, str | None] | None:
        if self._fs.key:
            return self._fs.key, self._fs.secret or "", self._fs.token
        credentials = None if self._fs.anon else await session.get_credentials()
        if credentials is None:
            return None
        frozen = await credentials.get_frozen_credentials()
        return frozen.access_key, frozen.secret_key, frozen.token

    def _stamps_now(self) -> list[object]:
        return [_stamp(file) for file in self._files]

    async def _network(self) -> Network:
        client = await self._session_client()
        config, endpoint = client.meta.config, client.meta.endpoint_url
        verify = self._fs.client_kwargs.get("verify")
        if verify is None:
            verify = self._fs.session.get_config_variable("ca_bundle")
        if verify is None:
            verify = os.environ.get("REQUESTS_CA_BUNDLE") or True

        def tls() -> ssl.SSLContext:
            return _tls(verify, config.client_cert)

        return Network(
            connect_s=_seconds(config.connect_timeout),
            read_s=_seconds(config.read_timeout),
            tls=tls,
            proxies=config.proxies or get_environ_proxies(endpoint),
        )


async def _send_by_caller(request: AWSPreparedRequest, **_: object) -> AioAWSResponse | None:
    """A hook of botocore: let the thread that called send the request."""
    requests = _requests.get()
    if requests is None:
        return None
    headers = headers_of(request, {"host", "content-length", "expect"})
    signed = SignedRequest(request.method, request.url, headers)
    body = request.body.read() if hasattr(request.body, "read") else request.body or b""
    reply = await requests.send(signed, body.encode() if isinstance(body, str) else bytes(body))
    response = AioAWSResponse(request.url, reply.status, dict(reply.headers), None)
    response._content = reply.body  # noqa: SLF001 - what it would read from a connection
    return response


def headers_of(request: Any, without: set[str]) -> dict[str, str]:
    """The headers of botocore's `request` as text, `without` those that the connection adds."""
    return {
        name: value.decode("ascii") if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
        if name.lower() not in without
    }


def _config_files(session: Any) -> list[Path]:
    names = map(session.get_config_variable, _FILES)
    return [Path(name).expanduser() for name in names if name]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _seconds(timeout: object) -> float:
    return float(timeout) if isinstance(timeout, int | float) else 60.0


def _tls(verify: object, certificate: object) -> ssl.SSLContext:
    """A TLS context as botocore makes it, so that `verify` and `AWS_CA_BUNDLE` mean the same."""
    import ssl

    context: ssl.SSLContext = create_urllib3_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        context.load_verify_locations(get_cert_path(verify))
    if isinstance(certificate, str):
        context.load_cert_chain(certificate)
    elif isinstance(certificate, tuple):
        context.load_cert_chain(*certificate)
    return context
