"""Check answers of S3 before they are used: the endpoint may be anybody's, and send anything.

An answer that no S3 server gives is an error, `Hostile`, and the request is repeated neither by
this client nor by another. Redirects are not followed, since the request holds credentials. If the
answer names the bucket's region, botocore uses the region's own host.
"""

from __future__ import annotations

import dataclasses
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus, urlsplit

from bt_lightning.store.s3.progress_timeout import Allowance
from bt_lightning.store.s3.request_errors import Hostile, TooLarge

if TYPE_CHECKING:
    from bt_lightning.store.s3.http_connection import Reply

PAGE: Final = Allowance(8 * 1024 * 1024, most_s=600.0)
"""For a page of a listing: 1,000 keys of 1,024 bytes, each byte encoded in three."""
WORKING: Final = Allowance(64 * 1024, most_s=900.0, slowest=0.0)
"""For operations that take minutes, while the server sends a space now and then."""
_MOST_TAGS: Final = 100_000
_SERVER_ERROR: Final = 500
_REDIRECTS: Final = range(300, 400)
_NOT_MODIFIED: Final = 304
_MOST_KEYS: Final = 250_000
_MOST_NAMES: Final = 128 * 1024 * 1024
"""Limit for all keys and versions of a listing, in bytes of memory."""
_DIGITS: Final = 18
_SHORT_PAGES: Final = 1000
"""Number of nearly empty pages that are allowed; versioned buckets have some."""
_LEAST_KEYS: Final = 10
"""Average number of keys that every further page must have."""


def check_reply(reply: Reply) -> Reply:
    """`reply`, checked for redirects and size; the body of a long 5xx error is dropped.

    Raises `Hostile`.
    """
    if reply.status in _REDIRECTS and reply.status != _NOT_MODIFIED and not _names_region(reply):
        host = urlsplit(reply.headers.get("location", "")).hostname or "nowhere"
        msg = (
            f"{reply.status}: the server redirects to {host!r}, which gets no credentials; if that"
            " is the right host, set it as the endpoint"
        )
        raise Hostile(msg)
    if not reply.cut:
        return reply
    if reply.status < _SERVER_ERROR:  # a server error may be a long page of a proxy
        raise TooLarge(len(reply.body))
    return dataclasses.replace(reply, body=b"", cut=False)


def _names_region(reply: Reply) -> bool:
    return "x-amz-bucket-region" in reply.headers or b"Redirect</Code>" in reply.body


def count_tags(body: bytes) -> None:
    """Raise `Hostile` for XML that would take much memory when parsed."""
    if body.count(b"<") > _MOST_TAGS:
        msg = f"the answer has more than {_MOST_TAGS:,} tags"
        raise Hostile(msg)


def parse_xml(body: bytes) -> ET.Element | None:
    """The root element of `body`; None if it is not XML. Raises `Hostile`."""
    count_tags(body)
    if b"<!ENTITY" in body:
        msg = "the answer defines entities"
        raise Hostile(msg)
    try:
        return ET.fromstring(body)  # noqa: S314 - of bounded size
    except (ET.ParseError, LookupError, ValueError):
        return None


def parse_listing(body: bytes) -> ET.Element:
    """Parse `body` as a page of a listing.

    Raises:
        Hostile: it would take much memory.
        ValueError: it is not a page of a listing.
    """
    page = parse_xml(body)
    if page is None or tag(page) != "ListBucketResult":
        msg = "the answer is no listing"
        raise ValueError(msg)
    return page


def tag(element: ET.Element) -> str:
    """The name of an element, without its namespace."""
    return element.tag.rpartition("}")[2]


def fields(element: ET.Element) -> dict[str, str]:
    """Name -> text of each child of `element`."""
    return {tag(child): child.text or "" for child in element}


class ListedPages:
    """One listing, page by page; checks that it is of the prefix, makes progress, and ends."""

    def __init__(self, prefix: str, *, ordered: bool = True) -> None:
        """`ordered` says whether the keys must ascend; those of directory buckets do not."""
        self.prefix = prefix
        self._ordered = ordered
        self._by_bytes = self._by_folders = True
        self._last: str | None = None
        self._keys = self._pages = self._names = 0
        self._tokens: set[str] = set()
        self.objects: list[tuple[str, int, str | None]] = []
        """Key, bytes and version of each object so far, without folders."""

    def add_page(self, page: ET.Element) -> str | None:
        """Add a `ListBucketResult`; return the token of the next page, None at the end.

        Raises:
            Hostile: the listing makes no progress, or is too large.
            ValueError: the page is not of the prefix, or has no token.
        """
        space = page.tag.rpartition("}")[0] + "}" if "}" in page.tag else ""
        names = [f"{space}{name}" for name in ("Key", "Size", "ETag")]
        encoded = page.findtext(f"{space}EncodingType") == "url"
        for element in page.iterfind(f"{space}Contents"):
            key, size, version = (element.findtext(name, "") for name in names)
            self._add(unquote_plus(key) if encoded else key, size, version.strip('"') or None)
        if page.findtext(f"{space}IsTruncated") != "true":
            return None
        self._pages += 1
        token = page.findtext(f"{space}NextContinuationToken")
        if not token:
            msg = "the listing is truncated, but names no next page"
            raise ValueError(msg)
        if token in self._tokens or self._pages > _SHORT_PAGES + self._keys // _LEAST_KEYS:
            raise _endless()
        self._tokens.add(token)
        return token

    def _add(self, key: str, size: str, version: str | None) -> None:
        plain = size.isascii() and size.isdigit() and len(size) <= _DIGITS
        if not key.startswith(self.prefix) or not plain:
            msg = "the listing has keys of another prefix, or no sizes"
            raise ValueError(msg)
        if self._ordered and self._last is not None:
            self._by_bytes = self._by_bytes and self._last < key
            self._by_folders = self._by_folders and _folders(self._last) < _folders(key)
            if not (self._by_bytes or self._by_folders):
                raise _endless()
        self._last = key
        self._keys += 1
        self._names += sys.getsizeof(key) + sys.getsizeof(version)
        if self._keys > _MOST_KEYS or self._names > _MOST_NAMES:
            msg = f"the listing has more than {self._keys - 1:,} objects: use a folder of its own"
            raise Hostile(msg)
        if not key.endswith("/"):
            self.objects.append((key, int(size), version))


def _folders(key: str) -> str:
    """Sort key for the order in which a tree of folders is walked, which some servers use."""
    return key.replace("/", "\0")


def _endless() -> Hostile:
    return Hostile("the listing makes no progress: its keys do not ascend, or its pages repeat")
