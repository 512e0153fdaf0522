"""List and read S3 by plain signed requests, without s3fs: for commands and restores.

Importing s3fs and making its client take 0.4 s; a listing takes 0.01 s, and a gigabyte on a fast
network not much longer than the client. So where `signed_reads_credentials` is certain of endpoint
and credentials, the requests are signed here. An answer counts only if it is exactly what was asked
for. After anything else, a refusal, an error, an unexpected form, s3fs asks again, and does
everything from then on. Two answers are final: one that no S3 server gives (`response_checks`), and
a timeout.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from bt_lightning.path_layout import under
from bt_lightning.store.interface import ObjectInfo, most_bytes, redact, too_large
from bt_lightning.store.retry import LateStore
from bt_lightning.store.s3.http_connection import (
    SMALL,
    BodyTarget,
    HttpConnections,
    Network,
    Reply,
    SignedRequest,
)
from bt_lightning.store.s3.list_objects import list_objects
from bt_lightning.store.s3.listing_pages import parse_page
from bt_lightning.store.s3.progress_timeout import Allowance
from bt_lightning.store.s3.request_errors import Failure, Hostile, TooLarge, of_exception, of_store
from bt_lightning.store.s3.response_checks import PAGE, check_reply, fields, parse_xml
from bt_lightning.store.s3.signed_reads_credentials import BucketAccess, find_access
from bt_lightning.store.secrets import known_secrets, with_spellings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from bt_lightning.store.interface import ReadProgress, Store
    from bt_lightning.store.s3.listing_pages import ListingPage

_EMPTY: Final = hashlib.sha256().hexdigest()
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_CONNECT_S, _READ_S = 10.0, 60.0
_OK, _PARTIAL, _MISSING = 200, 206, 404


class _AskS3fs(Exception):  # noqa: N818 - it is no error: s3fs asks again
    """Raised when an answer is not what was asked for; never leaves the module."""


class SignedReadStore(LateStore):
    """An S3 store that lists and reads by itself, and opens s3fs for everything else.

    May be used by several threads.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, object],
        access: BucketAccess,
        open_it: Callable[[], Store],
    ) -> None:
        """`open_it` opens the same store through s3fs."""
        super().__init__(self._opened)
        self._open_it = open_it
        self._store: Store | None = None
        used = [one for one in (access.key, access.secret, access.token) if one]
        self._secrets = known_secrets(url, options, {}) | with_spellings(used)
        self._name = redact(url, self._secrets).rstrip("/")
        self._base = url.partition("://")[2].partition("/")[2].strip("/")
        self._bucket: _Bucket | None = _Bucket(access)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._name

    @property
    def distant(self) -> bool:
        """Return True: it is a bucket."""
        return True

    def read(self, key: str) -> bytes | None:
        """Read in one request."""
        bucket = self._bucket
        if bucket is not None:
            with self._doing("reading", key):
                try:
                    return bucket.read(under(self._base, key))
                except _AskS3fs:
                    self._bucket = None
                except TooLarge as failure:
                    raise too_large(self._name, key) from failure
        return super().read(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List a thousand objects per request."""
        bucket = self._bucket
        if bucket is not None:
            folder = under(self._base, prefix) if prefix else self._base
            with self._doing("listing", prefix):
                try:
                    found = bucket.list(f"{folder}/" if folder else "")
                except _AskS3fs:
                    self._bucket = None
                else:
                    cut = len(under(self._base, ""))
                    return (ObjectInfo(key[cut:], size, version) for key, size, version in found)
        return super().list(prefix)

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read in one request, straight into `targets`."""
        bucket = self._bucket
        if bucket is not None:
            with self._doing("downloading", key):
                try:
                    bucket.read_into(
                        under(self._base, key), offset, BodyTarget(targets, on_progress)
                    )
                except _AskS3fs:
                    self._bucket = None
                else:
                    return
        on_progress(0)
        super().read_into(key, offset, *targets, on_progress=on_progress)

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        """Translate failures that s3fs must not repeat: hostile answers and timeouts."""
        try:
            yield
        except Failure as failure:
            text = f"{verb} {self._name}/{key}: {failure}"
            raise of_store(failure, redact(text, self._secrets)) from None

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = self._open_it()
            return self._store


def signed_read_store(
    url: str,
    options: Mapping[str, object],
    environment: Mapping[str, str],
    open_it: Callable[[], Store],
) -> Store:
    """The store at an `s3://` URL: a `SignedReadStore` if it is certain to ask as s3fs would.

    Otherwise what `open_it` returns. Called by `open_store`.
    """
    bucket, _, base = url.partition("://")[2].partition("/")
    profile = _profile(environment)
    access = None if profile is None else find_access(bucket, options, environment, profile)
    if access is None or base.strip("/") != base.rstrip("/") or {"?", "#"}.intersection(url):
        return open_it()
    return SignedReadStore(url, options, access, open_it)


def sign(
    access: BucketAccess,
    path: str,
    query: Mapping[str, str],
    at: datetime,
    span: str | None = None,
) -> SignedRequest:
    """A GET of `path` in the bucket, signed by AWS signature version 4. `at` is in UTC.

    `span`, such as `0-99`, is a range of bytes.

    Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    url = urlsplit(access.url)
    url_path = f"{url.path}/{quote(path, safe='/~')}"
    pairs = sorted((_word(name), _word(value)) for name, value in query.items())
    words = "&".join(f"{name}={value}" for name, value in pairs)
    day, moment = at.strftime("%Y%m%d"), at.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": url.netloc}
    if span is not None:
        headers["range"] = f"bytes={span}"
    headers |= {"x-amz-content-sha256": _EMPTY, "x-amz-date": moment}
    if access.token is not None:
        headers["x-amz-security-token"] = access.token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"GET\n{url_path}\n{words}\n{lines}\n{names}\n{_EMPTY}"
    scope = f"{day}/{access.region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    secret = f"AWS4{access.secret}".encode()
    for part in scope.split("/"):
        secret = _mac(secret, part)
    signature = _mac(secret, f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}").hex()
    del headers["host"]  # the connection sends it
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={access.key}/{scope}, SignedHeaders={names},"
        f" Signature={signature}"
    )
    target = f"{url.scheme}://{url.netloc}{url_path}"
    return SignedRequest("GET", f"{target}?{words}" if words else target, headers)


class _Bucket:
    """Signed requests to one bucket; called by any thread. Raises `_AskS3fs` and `Failure`."""

    def __init__(self, access: BucketAccess) -> None:
        self._access = access
        self._connections = HttpConnections(
            Network(_CONNECT_S, _READ_S, lambda: _tls(access.trust), {})
        )

    def read(self, key: str) -> bytes | None:
        reply = self._get(key, {}, allowance=Allowance(most_bytes(key)))
        if reply.status == _MISSING and _code(reply.body) == "NoSuchKey":
            return None
        if reply.status != _OK or str(len(reply.body)) != reply.headers.get("content-length"):
            raise _AskS3fs
        return reply.body

    def read_into(self, key: str, offset: int, into: BodyTarget) -> None:
        size = sum(map(len, into.targets))
        if not size:
            return
        span = f"{offset}-{offset + size - 1}"
        reply = self._get(key, {}, span, into)
        stated = reply.headers.get("content-range", "").partition("/")[0]
        if (reply.status, stated, reply.filled) != (_PARTIAL, f"bytes {span}", size):
            raise _AskS3fs

    def list(self, prefix: str) -> list[tuple[str, int, str | None]]:
        """Key, bytes and version of each object that begins with `prefix`, without folders."""

        def ask(query: Mapping[str, str]) -> ListingPage:
            asked = {"list-type": "2", "encoding-type": "url", "prefix": prefix, **query}
            reply = self._get("", asked, allowance=PAGE)
            if reply.status != _OK:
                raise _AskS3fs
            try:
                return parse_page(reply.body, asked["prefix"])
            except ValueError as error:
                raise _AskS3fs from error

        return list_objects(ask)

    def _get(
        self,
        path: str,
        query: Mapping[str, str],
        span: str | None = None,
        into: BodyTarget | None = None,
        *,
        allowance: Allowance = SMALL,
    ) -> Reply:
        for again in (True, False):
            signed = sign(self._access, path, query, datetime.now(timezone.utc), span)
            try:
                return check_reply(
                    self._connections.exchange(signed, into=into, allowance=allowance)
                )
            except Hostile:
                raise
            except TimeoutError as error:
                raise of_exception(error) from None
            except (OSError, http.client.HTTPException, Failure) as error:
                if not again:
                    raise _AskS3fs from error
        raise AssertionError


def _code(body: bytes) -> str:
    page = parse_xml(body)
    return "" if page is None else fields(page).get("Code", "")


def _word(text: str) -> str:
    return quote(text, safe="-_.~")


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _tls(trust: str | None) -> ssl.SSLContext:
    """Trust the same certificates as botocore: the file `trust`, else certifi's if installed."""
    import ssl

    if trust is None:
        with contextlib.suppress(ImportError):
            from certifi import where

            trust = where()
    return ssl.create_default_context(cafile=trust)


def _profile(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The default profile in the user's AWS files; None if it cannot be read as botocore would."""
    home = Path(environment.get("HOME", ""))
    if not home.is_absolute() or (home / ".config" / "fsspec").exists():
        return None
    profile: dict[str, str] = {}
    for file in (home / ".aws" / "config", home / ".aws" / "credentials"):
        if not file.exists():
            continue
        import configparser

        parser = configparser.RawConfigParser(default_section="", strict=True)
        try:
            parser.read_string(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            return None
        if "profile default" in parser:
            return None
        if parser.has_section("default"):
            profile.update(parser["default"])
    return profile
