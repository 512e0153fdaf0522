"""List all objects under a prefix; a long listing in several parts at the same time.

A store gives the next page only to who has the last one, so a long listing waits for each page.
After a few pages its folders are asked for, and the rest is cut at some of them: `start-after` a
folder begins there. That the parts together are one listing is proved, not trusted: each part goes
on until it meets an object that the part behind it has listed too. Where one does not, or begins
elsewhere, the parts are dropped, and the listing goes on page by page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.store.s3.listing_pages import (
    ListingBounds,
    PageChain,
    ascends,
    by_bytes,
    by_folders,
)

if TYPE_CHECKING:
    from bt_lightning.store.s3.listing_pages import ListedObject, ListingPage

Ask = Callable[[Mapping[str, str]], "ListingPage"]
"""Asks for a page, by the query of the request besides `prefix`. Any thread may call it."""

_PAGES_FIRST: Final = 4
"""Pages that are listed one after the other; shorter listings cost no request more."""
_PAGES_A_PART: Final = 4
"""Estimated pages of a part: it costs at most one request more than they do."""
_MOST_PARTS: Final = 8
_FULL: Final = 900
"""Average number of objects of the first pages below which the rest is not cut."""


def list_objects(ask: Ask, *, ordered: bool = True) -> list[ListedObject]:
    """Every object that `ask` lists, but no folders.

    `ordered` says whether the server lists in an order; if not, nothing is listed in parts.

    Raises:
        Hostile: the listing makes no progress, or is too large.
        Exception: what `ask` raises.
    """
    bounds = ListingBounds()
    chain = PageChain(bounds, ordered=ordered)
    query: dict[str, str] = {}
    pages = 0
    while True:
        page = ask(query)
        chain.add(page)
        if page.token is None:
            return [one for one in chain.objects if not one[0].endswith("/")]
        query = {"continuation-token": page.token}
        pages += 1
        if ordered and pages == _PAGES_FIRST:
            starts = _starts(ask, chain.objects)
            rest = _in_parts(ask, bounds, query, chain.objects, starts) if starts else None
            if rest is not None:
                found = [*chain.objects, *rest]
                return [one for one in found if not one[0].endswith("/")]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a listing."""

    query: Mapping[str, str]
    folder: str
    """The beginning of its first key."""
    first: Future[frozenset[str]] = field(default_factory=Future)
    """The keys of its first page; empty if it begins elsewhere."""


def _starts(ask: Ask, seen: list[ListedObject]) -> list[str]:
    """Folders at which to cut what is listed behind the objects `seen`; none if it is too short."""
    if len(seen) < _FULL * _PAGES_FIRST:
        return []
    last = seen[-1][0]
    common = next(
        (at for at, (a, b) in enumerate(zip(seen[0][0], last, strict=False)) if a != b), 0
    )
    folder = last[: last.rfind("/", 0, common) + 1]
    if not folder:
        return []
    try:
        page = ask({"prefix": folder, "delimiter": "/", "start-after": last})
    except Exception:  # noqa: BLE001 - whatever a server says to it: the pages go on
        return []
    ahead = [one for one in page.folders if one.startswith(folder) and one > last]
    begun = {key[: key.find("/", len(folder))] for key, _, _ in seen}
    estimated = len(ahead) * len(seen) // len(begun)
    number = min(_MOST_PARTS, estimated // (len(seen) * _PAGES_A_PART // _PAGES_FIRST))
    return [ahead[len(ahead) * part // number] for part in range(1, number)]


def _in_parts(
    ask: Ask,
    bounds: ListingBounds,
    query: Mapping[str, str],
    seen: list[ListedObject],
    starts: list[str],
) -> list[ListedObject] | None:
    """All objects from `query` on, which goes on behind `seen`; None if the parts do not meet."""
    parts = [_Part(query, ""), *(_Part({"start-after": one}, one) for one in starts)]
    with ThreadPoolExecutor(len(parts), "bt_lightning listing") as pool:
        lists = [
            pool.submit(_list_part, ask, bounds, part, behind)
            for part, behind in zip(parts, [*parts[1:], None], strict=True)
        ]
    found: list[ListedObject] = []
    for own in [part.result() for part in lists]:  # all of them: one may have failed
        if own is None:
            return None
        found += own
    whole = [*seen[-1:], *found]
    return found if ascends(whole, by_bytes) or ascends(whole, by_folders) else None


def _list_part(
    ask: Ask, bounds: ListingBounds, part: _Part, behind: _Part | None
) -> list[ListedObject] | None:
    """The objects of a part before those of the part behind it; None if it does not meet that."""
    chain = PageChain(bounds)
    query = part.query
    try:
        while True:
            page = ask(query)
            chain.add(page)
            if not part.first.done():
                keys = [key for key, _, _ in page.objects]
                begins = bool(keys) and keys[0].startswith(part.folder)
                part.first.set_result(frozenset(keys if begins else ()))
                if not begins:
                    return None
            if behind is not None:
                others = behind.first.result()
                known = len(chain.objects) - len(page.objects)
                for place, (key, _, _) in enumerate(page.objects, known):
                    if key in others:
                        return chain.objects[:place]
                if not others or page.token is None or _is_past(page, behind):
                    return None
            elif page.token is None:
                return chain.objects
            assert page.token is not None
            query = {"continuation-token": page.token}
    finally:
        if not part.first.done():
            part.first.set_result(frozenset())


def _is_past(page: ListingPage, behind: _Part) -> bool:
    """Whether a page ends behind the folder at which the next part begins."""
    last, folder = page.objects[-1][0] if page.objects else "", behind.folder
    after = not last.startswith(folder)
    return after and last > folder and by_folders(last) > by_folders(folder)
