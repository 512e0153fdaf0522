"""Call S3 operations over this package's connections; botocore signs them in s3fs's session.

So every setting of s3fs holds here too: credentials and their refresh, endpoint, region,
addressing, `s3_additional_kwargs`.
"""

from __future__ import annotations

import contextvars
import http
import random
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bt_lightning.errors import CheckpointError
from bt_lightning.store.retry import request_retries
from bt_lightning.store.s3 import request_errors, response_checks
from bt_lightning.store.s3.botocore_client_and_credentials import BotocoreClient, headers_of
from bt_lightning.store.s3.http_connection import SMALL, BodyTarget, Reply, SignedRequest
from bt_lightning.store.s3.request_errors import Failure, SlowAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.awsrequest import AWSRequest

    from bt_lightning.store.interface import Lent
    from bt_lightning.store.s3.progress_timeout import Allowance

T = TypeVar("T")

TRIES: Final = 4
_FIRST_WAIT_S: Final = 0.05
_METHODS: Final = {
    "get_object": "GET",
    "list_objects_v2": "GET",
    "put_object": "PUT",
    "upload_part": "PUT",
}
_ALLOWANCES: Final = {
    **dict.fromkeys(("list_parts", "list_multipart_uploads"), response_checks.PAGE),
    **dict.fromkeys(
        ("complete_multipart_upload", "copy_object", "upload_part_copy"), response_checks.WORKING
    ),
}
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
        self._clients = BotocoreClient(filesystem, bucket)

    @property
    def secrets(self) -> frozenset[str]:
        """The values of the credentials."""
        return self._clients.secrets

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation without a body; return its parsed answer. Only botocore retries."""

        async def ask(client: Any) -> dict[str, Any]:
            asked = self._parameters(client, operation, parameters)
            answer: dict[str, Any] = await getattr(client, operation)(**asked)
            return answer

        allowance = _ALLOWANCES.get(operation, SMALL)
        return self._with_credentials(lambda: self._clients.run(ask, allowance))

    def transfer(
        self,
        operation: str,
        body: Lent | None = None,
        into: BodyTarget | None = None,
        throttle: Callable[[int], int] = int,
        allowance: Allowance = SMALL,
        **parameters: Any,
    ) -> Reply:
        """Call an operation that sends `body`, or reads a body `into` memory or the allowed bytes.

        Returns the successful answer.
        """

        def ask() -> Reply:
            signed = self._clients.run(lambda client: self._signed(client, operation, parameters))
            connections = self._clients.connections()
            reply = connections.exchange(signed, body, into, throttle, allowance)
            reply = response_checks.check_reply(reply)
            if reply.status in {http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT}:
                return reply
            raise request_errors.of_reply(reply.status, reply.body, reply.headers)

        try:
            return self._with_credentials(ask)
        except Failure as failure:
            if failure.code not in request_errors.ELSEWHERE:
                raise
        self.call("head_bucket")  # botocore finds the region by this, and remembers it
        return self._with_credentials(ask)

    def url(self, key: str, expires_s: int) -> str:
        """A presigned URL to read an object: a secret."""
        asked = {"Key": key}

        def sign() -> SignedRequest:
            return self._clients.run(
                lambda client: self._signed(client, "get_object", asked, expires_s)
            )

        return self._with_credentials(sign).url

    def _with_credentials(self, ask: Callable[[], T]) -> T:
        """Call `ask`; once more if the credentials had expired and were renewed."""
        self._clients.renew()
        age = self._clients.age
        failure = None
        for _ in range(2):
            try:
                return ask()
            except (Stopped, CheckpointError):  # the latter comes from the source
                raise
            except Exception as error:  # noqa: BLE001 - clients raise whatever they like
                failure = request_errors.of_exception(error)
            expired = request_errors.of_credentials(failure, has_token=self._clients.has_token)
            if expired is None or not self._clients.renew(age):
                break
        assert failure is not None
        if expired is None or not self._clients.had_credentials:
            raise failure from None  # the cause's text may hold a signature
        raise expired from None

    def _parameters(self, client: Any, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """The user's parameters for every request, and `given`, if the operation has them."""
        name = client.meta.method_to_api_mapping[operation]
        members = client.meta.service_model.operation_model(name).input_shape.members
        everything = {**self._fs.s3_additional_kwargs, **self._fs.req_kw, **given}
        for key in [key for key in everything if key.startswith("SSECustomer")]:
            everything[f"CopySource{key}"] = everything[key]  # copied objects have the same key
        everything["Bucket"] = self.bucket
        return {
            name: value
            for name, value in everything.items()
            if name in members and value is not None
        }

    async def _signed(
        self,
        client: Any,
        operation: str,
        parameters: dict[str, Any],
        expires_s: int = _EXPIRES_S,
    ) -> SignedRequest:
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
        without = {"host", "content-length", "user-agent", "expect"}
        return SignedRequest(_METHODS[operation], url, headers_of(requests[0], without))


def retried(act: Callable[[], T], wait: Callable[[float], None] = time.sleep) -> T:
    """Call `act`, which is idempotent, up to `TRIES` times while its failure is transient."""
    for tries in range(1, TRIES):
        try:
            return act()
        except Failure as failure:
            if not failure.transient or isinstance(failure, SlowAnswer):
                raise
        request_retries.add()
        wait(_FIRST_WAIT_S * 2**tries * (0.5 + random.random()))  # noqa: S311 - no secret
    return act()


class Stopped(Exception):
    """Raised between two pieces of a body when the upload is aborted; never leaves `store.s3`."""


def _choose_signer(signature_version: object = None, **_: object) -> str | None:
    """Sign URLs by version 4: botocore's default for them is version 2, which S3 has dropped.

    `v4-query` leaves the digest of the body out, which is not known yet.
    """
    if _signing.get() is None or not isinstance(signature_version, str):
        return None
    return "s3v4-query" if signature_version == "v4-query" else signature_version


def _remember(request: AWSRequest, **_: object) -> None:
    """Keep the request behind a presigned URL: its signed headers must be sent."""
    requests = _signing.get()
    if requests is not None:
        requests.append(request)
