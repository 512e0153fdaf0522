"""Glob patterns that select files by path. Pure.

`*` matches any characters except `/`, `?` one of them, `**` any characters at all; a pattern is
compared with the whole path. So `*.safetensors` matches files at the top only, `**/*.safetensors`
also those below, and `optimizer/**` everything in a folder. This is Baseten's rule for
`allow_patterns`. A match takes time proportional to path times pattern, for any pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANY, _RUN, _DEEP = "?", "*", "**"


@dataclass(frozen=True, slots=True)
class Patterns:
    """Include and exclude patterns; without any pattern, every file is selected."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, path: str) -> bool:
        """Whether the patterns select the file at `path`."""
        return chosen(path, self.include, self.exclude)


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` matches the whole of `path`."""
    return any(_match(tokens, path) for tokens in _variants(pattern))


def chosen(path: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether a file is selected: by `include`, if there is any, and not by `exclude`."""
    includes = tuple(include)
    wanted = not includes or any(matches(pattern, path) for pattern in includes)
    return wanted and not any(matches(pattern, path) for pattern in exclude)


@lru_cache(maxsize=512)  # few patterns are compared with many paths
def _variants(pattern: str) -> tuple[list[str], ...]:
    """Tokens of the pattern; also without a leading `**/`, which may match nothing."""
    if pattern.startswith("**/"):
        return _tokens(pattern), _tokens(pattern.removeprefix("**/"))
    return (_tokens(pattern),)


def _tokens(pattern: str) -> list[str]:
    tokens: list[str] = []
    for char in pattern:
        if char == _RUN and tokens and tokens[-1] in {_RUN, _DEEP}:
            tokens[-1] = _DEEP
        else:
            tokens.append(char)
    return tokens


def _match(tokens: list[str], path: str) -> bool:
    """Simulate the pattern as an automaton: the set of positions it may be in."""
    positions = _skip_empty_runs({0}, tokens)
    for char in path:
        after = set()
        for position in positions:
            token = tokens[position] if position < len(tokens) else ""
            if token == _DEEP or (token == _RUN and char != "/"):
                after.add(position)
            elif (token == _ANY and char != "/") or (token == char and token != _RUN):
                after.add(position + 1)
        positions = _skip_empty_runs(after, tokens)
        if not positions:
            return False
    return len(tokens) in positions


def _skip_empty_runs(positions: set[int], tokens: list[str]) -> set[int]:
    """Add the positions behind runs, which may match nothing."""
    found = set(positions)
    for position in positions:
        next_position = position
        while next_position < len(tokens) and tokens[next_position] in {_RUN, _DEEP}:
            next_position += 1
            found.add(next_position)
    return found
