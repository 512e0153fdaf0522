"""Parse the pages of an S3 listing, and check that they are of one listing that ends.

A page of a thousand objects is scanned by a regular expression made of its first object, which
takes a fifth of the time of an XML parser; a page of any other form goes to the parser.
"""

from __future__ import annotations

import operator
import re
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

from bt_lightning.store.s3.request_errors import Hostile
from bt_lightning.store.s3.response_checks import count_tags, parse_xml, tag

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET
    from collections.abc import Callable, Sequence

ListedObject = tuple[str, int, "str | None"]
"""Key, bytes and version."""

_MOST_KEYS: Final = 250_000
_MOST_NAMES: Final = 128 * 1024 * 1024
"""Limit for all keys and versions of a listing, in bytes of memory."""
_DIGITS: Final = 18
_SHORT_PAGES: Final = 1000
"""Number of nearly empty pages that are allowed; versioned buckets have some."""
_LEAST_KEYS: Final = 10
"""Average number of keys that every further page must have."""
_MOST_FIELDS: Final = 20
_OBJECT: Final = "<Contents>"
_FIELDS: Final = re.compile(r"<(\w{1,64})>.*?</\1>", re.ASCII | re.DOTALL)
_QUOTE: Final = '(?:&quot;|&#34;|")?'
_PATTERNS: Final = {
    "Key": "([^<&]*)",
    "Size": "([0-9]{1,18})",
    "ETag": f'{_QUOTE}([^<&"]*){_QUOTE}',
}


@dataclass(frozen=True, slots=True)
class ListingPage:
    """A page of a listing."""

    objects: list[ListedObject]
    """In the server's order; folders too."""
    folders: list[str] = field(default_factory=list)
    """The common prefixes, if the request named a delimiter."""
    token: str | None = None
    """Of the next page; None at the end."""


def parse_page(body: bytes, prefix: str) -> ListingPage:
    """Parse `body` as a page of the listing of `prefix`.

    Raises:
        Hostile: it would take much memory.
        ValueError: it is not a page of that listing, or names no next page though it is truncated.
    """
    count_tags(body)
    found, rest = _scanned(body)
    page = parse_xml(rest)
    if page is None or tag(page) != "ListBucketResult":
        msg = "the answer is no listing"
        raise ValueError(msg)
    space = page.tag.rpartition("}")[0] + "}" if "}" in page.tag else ""
    objects = found or _parsed(page, space)
    encoded = page.findtext(f"{space}EncodingType") == "url"
    keys = [key for key, _, _ in objects]
    sizes = [size for _, size, _ in objects]
    if encoded and not {"%", "+"}.isdisjoint("".join(keys)):
        keys = list(map(unquote_plus, keys))
    # all keys are between the least and the greatest, so if both begin so, all do
    begins = not keys or (min(keys).startswith(prefix) and max(keys).startswith(prefix))
    digits = "".join(sizes)
    plain = digits.isascii() and digits.isdigit() and min(map(len, sizes)) > 0
    if not begins or (sizes and not (plain and max(map(len, sizes)) <= _DIGITS)):
        msg = "the listing has keys of another prefix, or no sizes"
        raise ValueError(msg)
    versions = [version or None for _, _, version in objects]
    folders = [
        unquote_plus(text) if encoded else text
        for element in page.iterfind(f"{space}CommonPrefixes")
        if (text := element.findtext(f"{space}Prefix", ""))
    ]
    token = None
    if page.findtext(f"{space}IsTruncated") == "true":
        token = page.findtext(f"{space}NextContinuationToken")
        if not token:
            msg = "the listing is truncated, but names no next page"
            raise ValueError(msg)
    return ListingPage(list(zip(keys, map(int, sizes), versions, strict=True)), folders, token)


def _parsed(page: ET.Element, space: str) -> list[tuple[str, str, str]]:
    found = []
    for element in page.iterfind(f"{space}Contents"):
        key, size, version = (element.findtext(f"{space}{n}", "") for n in ("Key", "Size", "ETag"))
        found.append((key, size, version.strip('"')))
    return found


def _scanned(body: bytes) -> tuple[list[tuple[str, str, str]], bytes]:
    """Key, size and version of each object as texts, and `body` without the objects.

    No objects and all of `body`, unless all objects have the form of the first one.
    """
    nothing: tuple[list[tuple[str, str, str]], bytes] = ([], body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return nothing
    first, last = text.find(_OBJECT), text.rfind("</Contents>") + len("</Contents>")
    if first < 0 or last < first or "<!" in text:
        return nothing
    end = text.index("</Contents>", first)
    names = [found.group(1) for found in _FIELDS.finditer(text, first + len(_OBJECT), end)]
    order = [name for name in names if name in _PATTERNS]
    if sorted(order) != sorted(_PATTERNS) or len(names) > _MOST_FIELDS:
        return nothing
    inner = [f"<{name}>{_PATTERNS.get(name) or _any(name)}</{name}>" for name in names]
    found = re.findall(f"{_OBJECT}{''.join(inner)}</Contents>", text, re.ASCII)
    number = text.count(_OBJECT)
    if len(found) < number or text.count(f"</Contents>{_OBJECT}") + 1 < number:
        return nothing
    pick = operator.itemgetter(*(order.index(name) for name in ("Key", "Size", "ETag")))
    return list(map(pick, found)), (text[:first] + text[last:]).encode()


def _any(name: str) -> str:
    """A pattern for what is in the element `name` of an object."""
    return f"[^<]*(?:<(?!/{name}>|/?Contents>)[^<]*)*"


class ListingBounds:
    """Checks that all pages of a listing together are not too many. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = self._pages = self._names = 0

    def add(self, page: ListingPage) -> None:
        """Count a page.

        Raises:
            Hostile: the listing is too large, or has too many pages.
        """
        names = sum(map(sys.getsizeof, (key for key, _, _ in page.objects)))
        names += sum(map(sys.getsizeof, (version for _, _, version in page.objects)))
        with self._lock:
            self._keys += len(page.objects)
            self._names += names
            self._pages += page.token is not None
            if self._keys > _MOST_KEYS or self._names > _MOST_NAMES:
                msg = (
                    f"the listing has more than {min(self._keys - 1, _MOST_KEYS):,} objects: use"
                    " a folder of its own"
                )
                raise Hostile(msg)
            if self._pages > _SHORT_PAGES + self._keys // _LEAST_KEYS:
                raise endless()


class PageChain:
    """Successive pages of a listing; checks that they make progress. Used by one thread."""

    def __init__(self, bounds: ListingBounds, *, ordered: bool = True) -> None:
        """`ordered` says whether the keys must ascend; those of directory buckets do not."""
        self._bounds = bounds
        self._order = by_bytes if ordered else None
        self._tokens: set[str] = set()
        self.objects: list[ListedObject] = []
        """All so far; folders too."""

    def add(self, page: ListingPage) -> None:
        """Add the next page.

        Raises:
            Hostile: the listing makes no progress, or is too large.
        """
        self._bounds.add(page)
        if self._order is not None and not ascends(
            [*self.objects[-1:], *page.objects], self._order
        ):
            if self._order is by_folders or not ascends([*self.objects, *page.objects], by_folders):
                raise endless()
            self._order = by_folders
        if page.token is not None:
            if page.token in self._tokens:
                raise endless()
            self._tokens.add(page.token)
        self.objects += page.objects


def ascends(objects: Sequence[ListedObject], order: Callable[[str], str]) -> bool:
    """Whether the key of each object is greater in this order than that of the one before."""
    keys = [order(key) for key, _, _ in objects]
    return all(map(operator.lt, keys, keys[1:]))


def by_bytes(key: str) -> str:
    """Sort key for the order of S3."""
    return key


def by_folders(key: str) -> str:
    """Sort key for the order in which a tree of folders is walked, which some servers use."""
    return key.replace("/", "\0")


def endless() -> Hostile:
    """The error for a listing that makes no progress."""
    return Hostile("the listing makes no progress: its keys do not ascend, or its pages repeat")
