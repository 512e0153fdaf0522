"""S3's operations: those with bytes over our own connections, the others by s3fs's client.

Both are signed by botocore in s3fs's session, so whatever s3fs understands (credentials and their
refresh, endpoint, region, addressing, `s3_additional_kwargs`) holds for both.
"""

from __future__ import annotations

import contextvars
import http
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies
from fsspec.asyn import sync

from bt_lightning.errors import CheckpointError
from bt_lightning.store.s3 import failures
from bt_lightning.store.s3.failures import Failure
from bt_lightning.store.s3.wire import Into, Network, Reply, Signed, Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from botocore.awsrequest import AWSRequest

    from bt_lightning.store.port import Lent

T = TypeVar("T")

TRIES: Final = 4
_FIRST_WAIT_S: Final = 0.05
_METHODS: Final = {"get_object": "GET", "put_object": "PUT", "upload_part": "PUT"}
_EXPIRES_S: Final = 3600
_NAME: Final = "bt-lightning"

_signing: contextvars.ContextVar[list[AWSRequest] | None] = contextvars.ContextVar(
    "bt_lightning_signing", default=None
)


class Api:
    """Operations on one bucket; called by several threads. Raises `Failure`."""

    def __init__(self, filesystem: Any, bucket: str) -> None:
        self._fs = filesystem
        self.bucket = bucket
        self._lock = threading.Lock()
        self._wire: Wire | None = None

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation without bytes; return its parsed answer. No retry but botocore's."""
        try:
            answer: dict[str, Any] = sync(self._fs.loop, self._call, operation, parameters)
        except Exception as error:  # noqa: BLE001 - clients raise whatever they like
            raise failures.of_exception(error) from None  # its text may hold a signature
        return answer

    def transfer(
        self,
        operation: str,
        body: Lent | None = None,
        into: Into | None = None,
        proceed: Callable[[int], int] = int,
        **parameters: Any,
    ) -> Reply:
        """Do an operation that sends `body`, or reads `into` memory; return a good answer."""
        for again in (True, False):
            try:
                signed = sync(self._fs.loop, self._signed, operation, parameters)
                reply = self._connections().exchange(signed, body, into, proceed)
            except (Stopped, CheckpointError):  # the latter is of who lends the bytes
                raise
            except Exception as error:  # noqa: BLE001 - as above
                raise failures.of_exception(error) from None
            if reply.status in {http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT}:
                return reply
            failure = failures.of_reply(reply.status, reply.body, reply.headers)
            if again and failure.code in failures.ELSEWHERE:
                self.call("head_bucket")  # botocore follows to the region, and remembers it
                continue
            raise failure
        raise AssertionError

    def url(self, key: str, expires_s: int) -> str:
        """A URL that lets whoever has it read an object: a secret."""
        try:
            signed = sync(self._fs.loop, self._signed, "get_object", {"Key": key}, expires_s)
        except Exception as error:  # noqa: BLE001 - as above
            raise failures.of_exception(error) from None
        return str(signed.url)

    async def _client(self) -> Any:
        await self._fs.set_session()
        return await self._fs.get_s3(self.bucket)

    def _parameters(self, client: Any, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Those of the user for every request, and `given`, as far as the operation has them."""
        name = client.meta.method_to_api_mapping[operation]
        members = client.meta.service_model.operation_model(name).input_shape.members
        everything = {**self._fs.s3_additional_kwargs, **self._fs.req_kw, **given}
        for key in [key for key in everything if key.startswith("SSECustomer")]:
            everything[f"CopySource{key}"] = everything[key]  # what we copy is ours
        everything["Bucket"] = self.bucket
        return {
            name: value
            for name, value in everything.items()
            if name in members and value is not None
        }

    async def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        client = await self._client()
        method = getattr(client, operation)
        answer: dict[str, Any] = await method(**self._parameters(client, operation, parameters))
        return answer

    async def _signed(
        self, operation: str, parameters: dict[str, Any], expires_s: int = _EXPIRES_S
    ) -> Signed:
        client = await self._client()
        events = client.meta.events
        events.register_first("choose-signer.s3", _choose_signer, unique_id=f"{_NAME}-choose")
        events.register("before-sign.s3", _remember, unique_id=f"{_NAME}-remember")
        requests: list[AWSRequest] = []
        token = _signing.set(requests)
        try:
            url = await client.generate_presigned_url(
                operation,
                Params=self._parameters(client, operation, parameters),
                ExpiresIn=expires_s,
            )
        finally:
            _signing.reset(token)
        return Signed(_METHODS[operation], url, _headers(requests[0]))

    def _connections(self) -> Wire:
        with self._lock:
            if self._wire is None:
                self._wire = Wire(sync(self._fs.loop, self._network))
            return self._wire

    async def _network(self) -> Network:
        client = await self._client()
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


def retried(act: Callable[[], T], wait: Callable[[float], None] = time.sleep) -> T:
    """Do what may be done twice, up to `TRIES` times: one request should not fail an upload."""
    for tries in range(1, TRIES):
        try:
            return act()
        except Failure as failure:
            if not failure.transient:
                raise
        wait(_FIRST_WAIT_S * 2**tries * (0.5 + random.random()))  # noqa: S311 - no secret
    return act()


class Stopped(Exception):
    """Raised between two pieces of a body when the upload is given up; never leaves the engine."""


def _choose_signer(signature_version: object = None, **_: object) -> str | None:
    """Sign our URLs as S3 wants it: botocore's default for a URL is version 2, which is no more.

    Plain version 4 would sign the digest of a body that is not there yet.
    """
    if _signing.get() is None or not isinstance(signature_version, str):
        return None
    return "s3v4-query" if signature_version == "v4-query" else signature_version


def _remember(request: AWSRequest, **_: object) -> None:
    """Keep the request that a URL is made of: the headers that were signed must be sent."""
    requests = _signing.get()
    if requests is not None:
        requests.append(request)


def _headers(request: AWSRequest) -> dict[str, str]:
    """What botocore signed besides the URL; the connection adds the host and the length."""
    return {
        name: value.decode("ascii") if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
        if name.lower() not in {"host", "content-length", "user-agent", "expect"}
    }


def _seconds(timeout: object) -> float:
    return float(timeout) if isinstance(timeout, int | float) else 60.0


def _tls(verify: object, certificate: object) -> ssl.SSLContext:
    """A context as botocore makes it, so that `verify` and `AWS_CA_BUNDLE` mean the same."""
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
