"""Which files patterns name. Pure.

`*` is any run of characters but `/`, `?` one of them, `**` any run at all; a pattern is compared
with the whole path. So `*.safetensors` names files at the top only, `**/*.safetensors` those below
too, and `optimizer/**` all that is in a folder. Baseten's rule for `allow_patterns`. A match takes
time in proportion to path times pattern, whatever the pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANY, _RUN, _DEEP = "?", "*", "**"


@dataclass(frozen=True, slots=True)
class Patterns:
    """A choice of files; without any pattern, all of them."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, path: str) -> bool:
        """Whether a file is wanted."""
        return chosen(path, self.include, self.exclude)


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` names `path`."""
    return any(_match(tokens, path) for tokens in _variants(pattern))


def chosen(path: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether a file is wanted: named by `include`, or nothing is, and not by `exclude`."""
    includes = tuple(include)
    wanted = not includes or any(matches(pattern, path) for pattern in includes)
    return wanted and not any(matches(pattern, path) for pattern in exclude)


def _variants(pattern: str) -> list[list[str]]:
    """Its tokens; a leading `**/` also stands for nothing."""
    found = [_tokens(pattern)]
    if pattern.startswith("**/"):
        found.append(_tokens(pattern.removeprefix("**/")))
    return found


def _tokens(pattern: str) -> list[str]:
    tokens: list[str] = []
    for char in pattern:
        if char == _RUN and tokens and tokens[-1] in {_RUN, _DEEP}:
            tokens[-1] = _DEEP
        else:
            tokens.append(char)
    return tokens


def _match(tokens: list[str], path: str) -> bool:
    """All places in the pattern that the path may have come to, kept as a set."""
    places = _onward({0}, tokens)
    for char in path:
        after = set()
        for place in places:
            token = tokens[place] if place < len(tokens) else ""
            if token == _DEEP or (token == _RUN and char != "/"):
                after.add(place)
            elif (token == _ANY and char != "/") or (token == char and token != _RUN):
                after.add(place + 1)
        places = _onward(after, tokens)
        if not places:
            return False
    return len(tokens) in places


def _onward(places: set[int], tokens: list[str]) -> set[int]:
    """With those behind a run that may be empty."""
    found = set(places)
    for place in places:
        at = place
        while at < len(tokens) and tokens[at] in {_RUN, _DEEP}:
            at += 1
            found.add(at)
    return found
