"""One object at an `https://` URL, read by ranges, at the version that its ETag or date names.

Redirects are followed by hand: to `https://` only, a few of them, and without the token once the
host is another one. The target may be a URL that expires, so it is asked for anew when it refuses.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import os
import re
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from bt_lightning.errors import CheckpointNotFoundError, StorePermanentError, StoreTransientError
from bt_lightning.store.interface import redact
from bt_lightning.store.objects.pinned_object import PinnedObject, changed
from bt_lightning.store.s3.http_connection import (
    SMALL,
    BodyTarget,
    HttpConnections,
    Network,
    Reply,
    SignedRequest,
)
from bt_lightning.store.s3.request_errors import Failure
from bt_lightning.store.secrets import known_secrets, with_spellings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from urllib.parse import SplitResult

    from bt_lightning.store.interface import ReadProgress

_AGENT: Final = "bt-lightning"
_OF_OPENSSL: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_MOST_REDIRECTS: Final = 8
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REFUSED: Final = frozenset({401, 403})
_MISSING: Final = frozenset({404, 410})
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_OK, _PARTIAL, _NO_RANGE = 200, 206, 416
_CONNECT_S, _READ_S = 10.0, 60.0
_RESERVED: Final = "%/:?#[]@!$&'()*+,;=~"
_RANGE: Final = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_DIGEST: Final = re.compile(r"(?i)(?:^|[,\s])sha-256=:?([A-Za-z0-9+/]{43}=)")
_GOOGLE: Final = re.compile(r"(?:^|[,\s])(md5|crc32c)=([A-Za-z0-9+/]+=*)")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the redirects lead: a secret if the URL is signed."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    redirected: bool


class HttpsObject:
    """The object at an `https://` URL."""

    connections = 8

    def __init__(self, url: str, token: str | None = None) -> None:
        """`token` is sent as a bearer token to the URL's own host, and to no other."""
        self._url = url.partition("#")[0]
        self._headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _AGENT}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        else:
            self._headers |= _basic(urlsplit(url))
        self._secrets = known_secrets(url, {}, {}) | with_spellings([token] if token else [])
        self.name = redact(self._url, self._secrets)
        self._lock, self._connecting = threading.Lock(), threading.Lock()
        self._place: _Place | None = None
        self._connections: dict[str, HttpConnections] = {}

    def find(self) -> list[PinnedObject]:
        """Ask for the first byte; its answer says size, version and checksums."""
        reply = self._ask({"Range": "bytes=0-0"})
        found = _RANGE.fullmatch(reply.headers.get("content-range", "").strip())
        if reply.status in {_PARTIAL, _NO_RANGE} and found:
            return [_pinned(reply, int(found[3]), has_ranges=True)]
        length = reply.headers.get("content-length", "")
        if reply.status != _OK or not re.fullmatch(r"\d{1,18}", length):
            msg = (
                f"{self.name} does not say how long it is, so whether all of it came would be"
                " unknown: use a server that sends Content-Length"
            )
            raise StorePermanentError(msg)
        return [_pinned(reply, int(length), has_ranges=False)]

    def checksums(self, found: PinnedObject) -> Mapping[str, str]:
        """Those that the answer of `find` told."""
        return found.checksums

    def read_into(
        self, found: PinnedObject, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read that range in one request; the whole object where the server has no ranges."""
        last = offset + len(target) - 1
        span = {"Range": f"bytes={offset}-{last}"} if found.has_ranges else {}
        reply = self._ask(span, BodyTarget([target], on_progress))
        now = _pinned(reply, found.size, has_ranges=found.has_ranges)
        if now.version != found.version:
            raise changed(self.name)
        if found.has_ranges:
            stated = _RANGE.fullmatch(reply.headers.get("content-range", "").strip())
            if stated is None or stated.groups() != (str(offset), str(last), str(found.size)):
                raise changed(self.name)
        if reply.filled != len(target):
            msg = f"{self.name} gave {reply.filled} of {len(target)} bytes from {offset} on"
            raise StoreTransientError(msg)

    def _ask(self, headers: Mapping[str, str], into: BodyTarget | None = None) -> Reply:
        """One request where the redirects lead; where they led may have expired: once more."""
        place = self._found(headers)
        reply = self._send(place.url, {**place.headers, **headers}, into)
        if place.redirected and (reply.status in _REFUSED | _MISSING | _REDIRECTS):
            with self._lock:
                self._place = None
            place = self._found(headers)
            reply = self._send(place.url, {**place.headers, **headers}, into)
        self._check(reply)
        return reply

    def _found(self, headers: Mapping[str, str]) -> _Place:
        """The end of the redirects, which are followed once for all ranges."""
        with self._lock:
            if self._place is None:
                self._place = self._followed(headers)
            return self._place

    def _followed(self, headers: Mapping[str, str]) -> _Place:
        url, own = self._url, dict(self._headers)
        for count in range(_MOST_REDIRECTS):
            asked = {**own, "Range": headers.get("Range", "bytes=0-0")}
            reply = self._send(url, asked)
            if reply.status not in _REDIRECTS:
                return _Place(url, own, redirected=count > 0)
            target = urljoin(url, reply.headers.get("location", ""))
            if urlsplit(target).scheme != "https":
                msg = f"{self.name} redirects to something that is not https://: it is not followed"
                raise StorePermanentError(msg)
            if _origin(target) != _origin(self._url):
                own.pop("Authorization", None)
            url = target
        msg = f"{self.name} redirects more than {_MOST_REDIRECTS} times"
        raise StorePermanentError(msg)

    def _send(self, url: str, headers: Mapping[str, str], into: BodyTarget | None = None) -> Reply:
        parts = urlsplit(url)
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        plain = quote(plain, safe=_RESERVED)  # blanks and letters that no request line holds
        request = SignedRequest("GET", plain, headers)
        try:
            return self._connection(_origin(url)).exchange(request, into=into, allowance=SMALL)
        except Failure as failure:
            text = f"reading {self.name}: {failure}"
            kind = StoreTransientError if failure.transient else StorePermanentError
            raise kind(redact(text, self._secrets)) from None
        except http.client.HTTPException as error:
            msg = f"reading {self.name}: {type(error).__name__}: the answer was cut off"
            raise StoreTransientError(msg) from None
        except OSError as error:
            import ssl

            wrong = isinstance(error, ssl.SSLCertVerificationError)
            text = f"reading {self.name}: {type(error).__name__}: {error}"
            kind = StorePermanentError if wrong else StoreTransientError
            raise kind(redact(text, self._secrets)) from None

    def _connection(self, origin: str) -> HttpConnections:
        with self._connecting:
            if origin not in self._connections:
                host = urlsplit(origin).hostname or ""
                proxies = {} if urllib.request.proxy_bypass(host) else urllib.request.getproxies()
                used = {name: url for name, url in proxies.items() if name == "https"}
                self._connections[origin] = HttpConnections(
                    Network(_CONNECT_S, _READ_S, _tls, used)
                )
            return self._connections[origin]

    def _check(self, reply: Reply) -> None:
        """Raise what another status than success means."""
        status = reply.status
        encoding = reply.headers.get("content-encoding", "identity").strip().lower()
        if status in {_OK, _PARTIAL} and encoding != "identity":
            msg = f"{self.name} sends {encoding} though identity was asked for"
            raise StorePermanentError(msg)
        if status in {_OK, _PARTIAL} or (status == _NO_RANGE and _is_empty(reply)):
            return
        if status in _MISSING:
            msg = f"there is no {self.name} ({status})"
            raise CheckpointNotFoundError(msg)
        if status in _REFUSED:
            msg = (
                f"{self.name} refuses this user ({status}): name a secret that holds a bearer"
                " token as auth_secret_name"
            )
            raise StorePermanentError(msg)
        msg = f"reading {self.name}: the server answers {status}"
        raise (StoreTransientError if status in _TRANSIENT else StorePermanentError)(msg)


def _pinned(reply: Reply, size: int, *, has_ranges: bool) -> PinnedObject:
    headers = reply.headers
    version = headers.get("etag", "").strip() or headers.get("last-modified", "").strip()
    told = [
        *(("sha256", value) for value in _DIGEST.findall(_digests(headers))),
        *_GOOGLE.findall(headers.get("x-goog-hash", "")),
    ]
    sums = {}
    for name, value in told:
        try:
            sums[name] = base64.b64decode(value, validate=True).hex()
        except binascii.Error:
            continue
    return PinnedObject("", size, version, sums, has_ranges)


def _digests(headers: Mapping[str, str]) -> str:
    """Digests of the whole object, also in answers with a part of it (RFC 9530, RFC 3230)."""
    return f"{headers.get('repr-digest', '')}, {headers.get('digest', '')}"


def _basic(url: SplitResult) -> dict[str, str]:
    """The header for the user that the URL names; none without one."""
    if url.username is None:
        return {}
    user = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode("ascii")}


def _is_empty(reply: Reply) -> bool:
    return reply.headers.get("content-range", "").replace(" ", "") == "bytes*/0"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{parts.port or 443}"


def _tls() -> ssl.SSLContext:
    """Trust as other Python clients do: the user's variables, else certifi, else the system."""
    import ssl

    trust = os.environ.get("REQUESTS_CA_BUNDLE")
    if not trust and not any(os.environ.get(name) for name in _OF_OPENSSL):
        with contextlib.suppress(ImportError):
            from certifi import where

            trust = where()
    if trust and Path(trust).is_dir():
        return ssl.create_default_context(capath=trust)
    return ssl.create_default_context(cafile=trust or None)
