"""Which of many texts somebody means who typed a few of their letters. Pure."""

from __future__ import annotations

import itertools


def fuzzy(query: str, text: str) -> tuple[int, tuple[int, ...]] | None:
    """How badly `text` fits and where its letters are, or None if they are not there in order.

    Smaller is better: letters side by side, and early, fit best. Case does not count.
    """
    wanted, given = query.lower(), text.lower()
    whole = given.find(wanted)
    if whole >= 0:
        return whole, tuple(range(whole, whole + len(wanted)))
    places: list[int] = []
    start = 0
    for letter in wanted:
        if letter == " ":
            continue
        at = given.find(letter, start)
        if at < 0:
            return None
        places.append(at)
        start = at + 1
    gaps = sum(b - a - 1 for a, b in itertools.pairwise(places))
    return 1000 + 10 * gaps + (places[0] if places else 0), tuple(places)


def best_matches(query: str, texts: list[str]) -> list[int]:
    """Indices of the texts that fit, best first; those that fit alike keep their order."""
    if not query.strip():
        return list(range(len(texts)))
    found = ((fuzzy(query, text), index) for index, text in enumerate(texts))
    scored = [(fit[0], index) for fit, index in found if fit is not None]
    return [index for _, index in sorted(scored)]
