"""Text for people: sizes, times, and names made harmless to a terminal."""

from __future__ import annotations

import itertools

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
_MINUTE, _HOUR = 60, 3600
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_DIGITS = 18
"""Longer runs of digits are sorted as text."""


def human_size(size: float) -> str:
    """Decimal units, as Baseten shows them: `1.50 GB`, `512 B`."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"


def human_duration(seconds: float) -> str:
    """`7 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


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
