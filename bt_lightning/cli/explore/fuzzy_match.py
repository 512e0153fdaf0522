"""Fuzzy matching: the texts that contain typed letters in order. Pure."""

from __future__ import annotations

import itertools


def fuzzy(query: str, text: str) -> tuple[int, tuple[int, ...]] | None:
    """The cost of matching `text`, and the positions of the letters; None if it does not match.

    Smaller is better: adjacent and early letters match best. Case is ignored.
    """
    needle, haystack = query.lower(), text.lower()
    start = haystack.find(needle)
    if start >= 0:
        return start, tuple(range(start, start + len(needle)))
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
    gaps = sum(b - a - 1 for a, b in itertools.pairwise(places))
    return 1000 + 10 * gaps + (places[0] if places else 0), tuple(places)


def best_matches(query: str, texts: list[str]) -> list[int]:
    """Indices of the texts that match, best first; equal matches keep their order."""
    if not query.strip():
        return list(range(len(texts)))
    found = ((fuzzy(query, text), index) for index, text in enumerate(texts))
    scored = [(fit[0], index) for fit, index in found if fit is not None]
    return [index for _, index in sorted(scored)]
