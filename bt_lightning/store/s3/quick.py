"""Listings and reads of S3 without a client of AWS's: for people and accelerators that wait.

The import of s3fs and the making of its client take 0.4 s, a listing takes 0.01 s, and a gigabyte
on a quick network not much longer than that client. So where `quick_config` is certain of the place
and of the credentials, plain signed requests ask. What they are told counts only if it is what was
asked for: of anything else, a refusal, an error, a redirect, an answer in another form, s3fs is
asked again, and it alone from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import threading
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus, urlsplit

from bt_lightning.layout import under
from bt_lightning.store.port import ObjectInfo, redact, secrets_of
from bt_lightning.store.retry import LateStore
from bt_lightning.store.s3.failures import Failure
from bt_lightning.store.s3.patience import Allowance
from bt_lightning.store.s3.quick_config import Access, access
from bt_lightning.store.s3.wire import Into, Network, Reply, Signed, Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from bt_lightning.store.port import Arrived, Store

_EMPTY: Final = hashlib.sha256().hexdigest()
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_LARGEST: Final = Allowance(64 * 1024 * 1024)
"""What is larger is no small read."""
_CONNECT_S, _READ_S = 10.0, 60.0
_OK, _PARTIAL, _MISSING = 200, 206, 404


class _Doubt(Exception):  # noqa: N818 - it is no error: somebody else is asked
    """Raised when an answer is not what was asked for; never leaves the module."""


class QuickStore(LateStore):
    """An S3 store that lists and reads by itself; opened for everything else.

    May be used by several threads.
    """

    def __init__(
        self, url: str, options: Mapping[str, object], asked: Access, open_it: Callable[[], Store]
    ) -> None:
        """`open_it` opens the same place through s3fs."""
        super().__init__(self._opened)
        self._open_it = open_it
        self._store: Store | None = None
        self._name = redact(url, secrets_of(dict(options))).rstrip("/")
        self._base = url.partition("://")[2].partition("/")[2].strip("/")
        self._bucket: _Bucket | None = _Bucket(asked)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._name

    @property
    def distant(self) -> bool:
        """It is."""
        return True

    def read(self, key: str) -> bytes | None:
        """One request."""
        bucket = self._bucket
        if bucket is not None:
            try:
                return bucket.read(under(self._base, key))
            except _Doubt:
                self._bucket = None
        return super().read(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """One request for a thousand objects."""
        bucket = self._bucket
        if bucket is not None:
            folder = under(self._base, prefix) if prefix else self._base
            try:
                found = bucket.list(f"{folder}/" if folder else "")
            except _Doubt:
                self._bucket = None
            else:
                cut = len(under(self._base, ""))
                return (ObjectInfo(key[cut:], size, version) for key, size, version in found)
        return super().list(prefix)

    def read_into(
        self, key: str, offset: int, *targets: memoryview, arrived: Arrived = int
    ) -> None:
        """One request, straight into `targets`."""
        bucket = self._bucket
        if bucket is not None:
            try:
                bucket.read_into(under(self._base, key), offset, Into(targets, arrived))
            except _Doubt:
                self._bucket = None
            else:
                return
        arrived(0)
        super().read_into(key, offset, *targets, arrived=arrived)

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = self._open_it()
            return self._store


def quick(
    url: str,
    options: Mapping[str, object],
    environment: Mapping[str, str],
    open_it: Callable[[], Store],
) -> Store:
    """The store at an `s3://` URL: quick if that is certain to be the same, else as opened."""
    bucket, _, base = url.partition("://")[2].partition("/")
    profile = _profile(environment)
    asked = None if profile is None else access(bucket, options, environment, profile)
    if asked is None or base.strip("/") != base.rstrip("/") or {"?", "#"}.intersection(url):
        return open_it()
    return QuickStore(url, options, asked, open_it)


def sign(
    asked: Access, path: str, query: Mapping[str, str], at: datetime, span: str | None = None
) -> Signed:
    """A GET of `path` in the bucket, signed by version 4 of AWS's signature. `at` is in UTC.

    `span`, as in `0-99`, asks for these bytes only.

    Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    url = urlsplit(asked.url)
    place = f"{url.path}/{quote(path, safe='/~')}"
    pairs = sorted((_word(name), _word(value)) for name, value in query.items())
    words = "&".join(f"{name}={value}" for name, value in pairs)
    day, moment = at.strftime("%Y%m%d"), at.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": url.netloc}
    if span is not None:
        headers["range"] = f"bytes={span}"
    headers |= {"x-amz-content-sha256": _EMPTY, "x-amz-date": moment}
    if asked.token is not None:
        headers["x-amz-security-token"] = asked.token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"GET\n{place}\n{words}\n{lines}\n{names}\n{_EMPTY}"
    scope = f"{day}/{asked.region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    secret = f"AWS4{asked.secret}".encode()
    for part in scope.split("/"):
        secret = _mac(secret, part)
    signature = _mac(secret, f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}").hex()
    del headers["host"]  # the connection sends it
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={asked.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    there = f"{url.scheme}://{url.netloc}{place}"
    return Signed("GET", f"{there}?{words}" if words else there, headers)


class _Bucket:
    """Requests to one bucket; by any thread. Raises `_Doubt`."""

    def __init__(self, asked: Access) -> None:
        self._asked = asked
        self._wire = Wire(Network(_CONNECT_S, _READ_S, lambda: _tls(asked.trust), {}))

    def read(self, key: str) -> bytes | None:
        reply = self._get(key, {})
        if reply.status == _MISSING and _text(_xml(reply.body), "Code") == "NoSuchKey":
            return None
        if reply.status != _OK or str(len(reply.body)) != reply.headers.get("content-length"):
            raise _Doubt
        return reply.body

    def read_into(self, key: str, offset: int, into: Into) -> None:
        size = sum(map(len, into.targets))
        if not size:
            return
        span = f"{offset}-{offset + size - 1}"
        reply = self._get(key, {}, span, into)
        stated = reply.headers.get("content-range", "").partition("/")[0]
        if (reply.status, stated, reply.filled) != (_PARTIAL, f"bytes {span}", size):
            raise _Doubt

    def list(self, prefix: str) -> list[tuple[str, int, str | None]]:
        """Key, bytes and version of each object that begins with `prefix`; no folders."""
        found: list[tuple[str, int, str | None]] = []
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        tokens: set[str] = set()
        while True:
            reply = self._get("", query)
            page = _xml(reply.body)
            if reply.status != _OK or _tag(page) != "ListBucketResult":
                raise _Doubt
            encoded = _text(page, "EncodingType") == "url"
            found += [
                _object(one, prefix, encoded=encoded) for one in page if _tag(one) == "Contents"
            ]
            if _text(page, "IsTruncated") != "true":
                return [one for one in found if not one[0].endswith("/")]
            token = _text(page, "NextContinuationToken")
            if not token or token in tokens:
                raise _Doubt  # the same page would come for ever
            tokens.add(token)
            query["continuation-token"] = token

    def _get(
        self,
        path: str,
        query: Mapping[str, str],
        span: str | None = None,
        into: Into | None = None,
    ) -> Reply:
        for again in (True, False):
            signed = sign(self._asked, path, query, datetime.now(timezone.utc), span)
            try:
                return self._wire.exchange(signed, into=into, allowance=_LARGEST)
            except (OSError, http.client.HTTPException, Failure) as error:
                if not again or isinstance(error, TimeoutError):  # s3fs may wait as long again
                    raise _Doubt from error
        raise AssertionError


def _object(element: ET.Element, prefix: str, *, encoded: bool) -> tuple[str, int, str | None]:
    key, size = _text(element, "Key"), _text(element, "Size")
    key = unquote_plus(key) if encoded else key
    if not key.startswith(prefix) or not (size.isascii() and size.isdigit()):
        raise _Doubt
    return key, int(size), _text(element, "ETag").strip('"') or None


def _xml(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314 - of the server that holds the data
    except (ET.ParseError, LookupError, ValueError) as error:
        raise _Doubt from error


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ET.Element, name: str) -> str:
    return next((child.text or "" for child in element if _tag(child) == name), "")


def _word(text: str) -> str:
    return quote(text, safe="-_.~")


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _tls(trust: str | None) -> ssl.SSLContext:
    """Trust whom botocore trusts: that file, else certifi's where that is installed."""
    import ssl

    if trust is None:
        with contextlib.suppress(ImportError):
            from certifi import where

            trust = where()
    return ssl.create_default_context(cafile=trust)


def _profile(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The default profile of the user's files of AWS; None if they are not plain."""
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
