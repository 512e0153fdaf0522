"""Text for people: times, and names made harmless to a terminal."""

from __future__ import annotations

import itertools

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_DIGITS = 18
"""Longer runs of digits are sorted as text."""


def printable(text: str, keep: str = "") -> str:
    """`text` without characters that a terminal may act on; characters in `keep` stay.

    Replaces control and format characters, lone surrogates, and marks of writing direction.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _REPLACEMENT for char in text)


def short_time(created_at: str) -> str:
    """An ISO 8601 time in UTC as `2026-01-02 03:04:05Z`; printable for any input."""
    return printable(created_at[:19]).replace("T", " ") + "Z" if created_at else ""


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key: runs of digits count as numbers, so `checkpoint-20` is before `checkpoint-100`."""
    parts: list[tuple[int, int, str]] = []
    for digits, chars in itertools.groupby(text, lambda char: char.isascii() and char.isdigit()):
        run = "".join(chars)
        parts.append((0, int(run), run) if digits and len(run) <= _MAX_DIGITS else (1, 0, run))
    return parts
