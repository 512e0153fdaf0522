"""Matching of a typed filter with names. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def letters_found(query: str, text: str) -> tuple[int, ...] | None:
    """The positions of the letters of `query` in `text`, together or in order; None: not there.

    Case is ignored, and so are spaces where the letters are not together.
    """
    needle, haystack = query.lower(), text.lower()
    start = haystack.find(needle)
    if start >= 0:
        return tuple(range(start, start + len(needle)))
    places: list[int] = []
    start = 0
    for letter in needle:
        if letter == " ":
            continue
        at = haystack.find(letter, start)
        if at < 0:
            return None
        places.append(at)
        start = at + 1
    return tuple(places)


def matching(query: str, names: Sequence[str]) -> list[int]:
    """Indices of the names that have the letters of `query` together; else, in order."""
    needle = query.strip().lower()
    together = [index for index, name in enumerate(names) if needle in name.lower()]
    if together:
        return together
    return [i for i, name in enumerate(names) if letters_found(needle, name) is not None]
