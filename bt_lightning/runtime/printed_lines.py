"""What a command prints, cut into lines for a log. Pure: bytes and times come in, texts go out.

A progress bar writes its line again and again, between carriage returns: of that, the log gets what
stands at the end, and now and then what stands there meanwhile. Colours and cursor movements go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES: Final = 64 * 1024
"""Bytes of a line; a longer one is cut."""
BAR_S: Final = 30.0
"""Seconds between two states of a progress bar."""
PROMPT_S: Final = 10.0
"""Seconds after which a line without an end is logged as it stands."""
_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""Control sequences of terminals. Source: ECMA-48."""


class PrintedLines:
    """Cuts the bytes of one stream. Used by one thread."""

    def __init__(self, now: float = 0.0) -> None:
        """`now`, here and below, is any clock in seconds that never goes back."""
        self.hide: Callable[[str], str] = str
        """Hides secrets in a line that is cut; whoever logs hides those in whole lines."""
        self.longest_secret = 0
        """Characters."""
        self._bytes = bytearray()
        self._bar_at = self._changed_at = now

    def add(self, data: bytes, now: float) -> list[str]:
        """The lines that `data` ends."""
        self._bytes += data
        self._changed_at = now
        *whole, rest = self._bytes.split(b"\n")
        lines = [_shown(line) for line in whole]
        if whole:
            self._bar_at = now
        if b"\r" in rest:
            rest = self._bar(rest, now, lines)
        if len(rest) > MOST_BYTES:  # hidden before the cut, which may go through a secret
            text = self.hide(rest.decode("utf-8", "replace"))
            kept = min(self.longest_secret, MOST_BYTES // 2)
            lines.append(_shown(text[: len(text) - kept].encode()))
            rest = bytearray(text[len(text) - kept :].encode())
        self._bytes = rest
        return [line for line in lines if line]

    def rest(self, now: float, *, ended: bool = False) -> list[str]:
        """The line that stands there without an end, if the stream `ended` or rests."""
        if not self._bytes or not (ended or now - self._changed_at >= PROMPT_S):
            return []
        line, self._bytes = _shown(self._bytes), bytearray()
        return [line] if line else []

    def _bar(self, rest: bytearray, now: float, lines: list[str]) -> bytearray:
        """Drop what a progress bar has overwritten; log its state if it is time."""
        if now - self._bar_at >= BAR_S:
            self._bar_at = now
            lines.append(_shown(rest))
        ended = rest.rstrip(b"\r")
        return rest[ended.rfind(b"\r") + 1 :]


def _shown(line: bytes | bytearray) -> str:
    """What a terminal shows of a line, without its colours."""
    text = bytes(line).decode("utf-8", "replace").rstrip("\r")
    text = _ESCAPE.sub("", text[text.rfind("\r") + 1 :])
    return "".join(char for char in text if char.isprintable() or char == "\t").rstrip()
