"""What an answer of S3 may be like. Whoever stands at the endpoint may send anything.

An answer that no server of S3 gives is an error, and nobody is asked again: neither the same
server nor another client. Redirects are not followed, since the request holds credentials; only a
region that the answer names is, by botocore, which knows the hosts of regions.
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
"""For a page of a listing: a thousand keys of a thousand bytes, each spelled with three."""
WORKING: Final = Allowance(64 * 1024, most_s=900.0, slowest=0.0)
"""For what the server works at for minutes, while it sends a space now and then."""
_MOST_TAGS: Final = 100_000
_OF_SERVER: Final = 500
_REDIRECTS: Final = range(300, 400)
_NOT_MODIFIED: Final = 304
_MOST_KEYS: Final = 250_000
_MOST_NAMES: Final = 128 * 1024 * 1024
"""Bytes of all keys and versions of a listing in memory."""
_DIGITS: Final = 18
_SHORT_PAGES: Final = 1000
"""Pages with next to nothing; versioned buckets have some."""
_LEAST_KEYS: Final = 10
"""Keys of each page after those."""


def checked(reply: Reply) -> Reply:
    """The same; without the text of an error of a server's that is long. Raises `Hostile`."""
    if reply.status in _REDIRECTS and reply.status != _NOT_MODIFIED and not _names_region(reply):
        there = urlsplit(reply.headers.get("location", "")).hostname or "nowhere"
        msg = (
            f"{reply.status}: the server sends us on to {there!r}, which gets no credentials; if"
            " that is the right one, name it as the endpoint"
        )
        raise Hostile(msg)
    if not reply.cut:
        return reply
    if reply.status < _OF_SERVER:  # else it may be the page of a proxy
        raise TooLarge(len(reply.body))
    return dataclasses.replace(reply, body=b"", cut=False)


def _names_region(reply: Reply) -> bool:
    return "x-amz-bucket-region" in reply.headers or b"Redirect</Code>" in reply.body


def count_tags(body: bytes) -> None:
    """Raise `Hostile` for a text in XML that would take much memory."""
    if body.count(b"<") > _MOST_TAGS:
        msg = f"the answer has more than {_MOST_TAGS:,} tags"
        raise Hostile(msg)


def tree(body: bytes) -> ET.Element | None:
    """The root of a text in XML, None if it is none. Raises `Hostile`."""
    count_tags(body)
    if b"<!ENTITY" in body:
        msg = "the answer defines entities"
        raise Hostile(msg)
    try:
        return ET.fromstring(body)  # noqa: S314 - of bounded size
    except (ET.ParseError, LookupError, ValueError):
        return None


def listed(body: bytes) -> ET.Element:
    """The page of a listing that the body of an answer is.

    Raises:
        Hostile: it would take much memory.
        ValueError: it is none.
    """
    page = tree(body)
    if page is None or tag(page) != "ListBucketResult":
        msg = "the answer is no listing"
        raise ValueError(msg)
    return page


def tag(element: ET.Element) -> str:
    """The name of an element, without its namespace."""
    return element.tag.rpartition("}")[2]


def fields(element: ET.Element) -> dict[str, str]:
    """The text of each element in it, by its name."""
    return {tag(child): child.text or "" for child in element}


class ListedPages:
    """One listing, page by page: it must be of what was asked for, go on, and end."""

    def __init__(self, prefix: str, *, ordered: bool = True) -> None:
        """`ordered`: whether the server promises an order; that of directory buckets does not."""
        self.prefix = prefix
        self._ordered = ordered
        self._by_bytes = self._by_folders = True
        self._last: str | None = None
        self._keys = self._pages = self._names = 0
        self._tokens: set[str] = set()
        self.objects: list[tuple[str, int, str | None]] = []
        """Key, bytes and version of each object so far; no folders."""

    def take(self, page: ET.Element) -> str | None:
        """Take a `ListBucketResult`; return the token of the next page, None at the end.

        Raises:
            Hostile: it does not go on, or not end.
            ValueError: it is not of what was asked for.
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
            msg = "the listing does not say how it goes on"
            raise ValueError(msg)
        if token in self._tokens or self._pages > _SHORT_PAGES + self._keys // _LEAST_KEYS:
            raise _endless()
        self._tokens.add(token)
        return token

    def _add(self, key: str, size: str, version: str | None) -> None:
        plain = size.isascii() and size.isdigit() and len(size) <= _DIGITS
        if not key.startswith(self.prefix) or not plain:
            msg = "the listing is not of what was asked for"
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
    """What sorts keys as a tree of folders is walked, which some servers do."""
    return key.replace("/", "\0")


def _endless() -> Hostile:
    return Hostile("the listing does not go on: its keys do not ascend, or its pages repeat")
