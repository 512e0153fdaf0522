"""Rows of a pane: a table that fits any width, or lines of text. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from bt_lightning.cli.explore.fuzzy_match import letters_found

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_GAP = 2
_LEAST_NAME = 14
_DOTS = "…"
_MOST_MEASURED = 20_000
"""Rows that are measured for the widths of columns; a later wider cell is shortened."""


class Rows(Protocol):
    """What a pane lists. All text is harmless to a terminal."""

    @property
    def orders(self) -> Mapping[str, Sequence[Any] | None]:
        """Name of an order -> the sort key of each row, None for one that is last.

        None instead of keys: as they come.
        """

    def __len__(self) -> int:
        """Number of rows."""

    def row_id(self, index: int) -> object:
        """What a row is, which stays when the rows are read again."""

    def name(self, index: int) -> str | None:
        """What a filter compares; None: a row that no filter finds."""

    def head(self, width: int) -> Text | None:
        """The titles of the columns, if there are any."""

    def draw(self, index: int, width: int, query: str) -> Text:
        """One row in a pane of that many columns; it may be wider, if `wide` says so."""

    @property
    def wide(self) -> int:
        """Columns of the widest row that is not made to fit; 0 if all are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowColumn:
    """A column of a table; the first one is the name, which takes what the others leave."""

    title: str
    right: bool = False
    rank: int = 0
    """The column of the highest rank is the first to be left out; 0 stays in any width."""
    style: str = ""


@dataclass(frozen=True)
class TableRows:
    """Rows of cells under titles, and lines above them that no filter finds."""

    columns: Sequence[RowColumn]
    cells: Sequence[Sequence[str]]
    """One text for each column."""
    ids: Sequence[object]
    names: Sequence[str] | None = None
    """What a filter compares; the first cells by default."""
    orders: Mapping[str, Sequence[Any] | None] = field(default_factory=lambda: {"": None})
    marked: frozenset[object] = frozenset()
    """Ids of marked rows."""
    can_mark: bool = False
    lines: Sequence[Text | Callable[[int], Text]] = ()
    """Lines above the rows."""

    def __len__(self) -> int:
        return len(self.lines) + len(self.cells)

    @property
    def wide(self) -> int:
        """All rows are made to fit."""
        return 0

    @cached_property
    def natural(self) -> tuple[int, ...]:
        """The widths of the columns' widest cells; 0 for a column without any text."""
        widths = []
        for place, column in enumerate(self.columns):
            widest = max((cell_len(row[place]) for row in self.cells[:_MOST_MEASURED]), default=0)
            widths.append(max(widest, cell_len(column.title)) if widest or not place else 0)
        return tuple(widths)

    def row_id(self, index: int) -> object:
        """The id; of a line above, its number."""
        at = index - len(self.lines)
        return index if at < 0 else self.ids[at]

    def name(self, index: int) -> str | None:
        """The name of a row, None for a line above."""
        at = index - len(self.lines)
        if at < 0:
            return None
        return self.cells[at][0] if self.names is None else self.names[at]

    def head(self, width: int) -> Text | None:
        """Titles, over their columns."""
        titles = [column.title for column in self.columns]
        if not any(titles):
            return None
        line = self._line(titles, width - 2 * self.can_mark)
        line.stylize("bold")
        return Text("  " * self.can_mark).append_text(line)

    def draw(self, index: int, width: int, query: str) -> Text:
        """A row, or a line above."""
        at = index - len(self.lines)
        if at < 0:
            return _drawn(self.lines[index], width, "")
        if not self.can_mark:
            return self._line(self.cells[at], width, query, styled=True)
        line = self._line(self.cells[at], width - 2, query, styled=True)
        mark = "● " if self.ids[at] in self.marked else "  "
        return Text.assemble((mark, "bold magenta"), line, no_wrap=True)

    def _line(
        self, cells: Sequence[str], width: int, query: str = "", *, styled: bool = False
    ) -> Text:
        line = Text(no_wrap=True)
        for number, (place, size) in enumerate(column_widths(self, width)):
            column = self.columns[place]
            shown = shorten_middle(cells[place], size)
            part = Text(shown, style=column.style if styled else "", no_wrap=True)
            if query and not place:
                part = _emphasised(part, query)
            pad = " " * (size - cell_len(shown))
            line.append(" " * (_GAP if number else 0))
            line.append_text(Text(pad).append_text(part) if column.right else part.append(pad))
        return line


@dataclass(frozen=True)
class TextRows:
    """Lines of text, each of which a filter compares."""

    lines: Sequence[Text | Callable[[int], Text]]
    """A function gets the width of the pane."""
    orders: Mapping[str, Sequence[Any] | None] = field(default_factory=lambda: {"": None})

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def wide(self) -> int:
        """The widest line."""
        return max((line.cell_len for line in self.lines if isinstance(line, Text)), default=0)

    def row_id(self, index: int) -> object:
        """Its number."""
        return index

    def name(self, index: int) -> str | None:
        """The whole line."""
        line = self.lines[index]
        return line.plain if isinstance(line, Text) else ""

    def head(self, _: int) -> Text | None:
        """There are no columns."""
        return None

    def draw(self, index: int, width: int, query: str) -> Text:
        """The line, with what the filter found."""
        return _drawn(self.lines[index], width, query)


def cut_line(text: Text) -> Callable[[int], Text]:
    """A line that ends with dots where the pane does."""

    def line(width: int) -> Text:
        drawn = text.copy()
        drawn.truncate(width, overflow="ellipsis")
        return drawn

    return line


def _drawn(line: Text | Callable[[int], Text], width: int, query: str) -> Text:
    text = line if isinstance(line, Text) else line(width)
    return _emphasised(text.copy(), query) if query else text


def _emphasised(text: Text, query: str) -> Text:
    for place in letters_found(query, text.plain) or ():
        text.stylize("bold underline", place, place + 1)
    return text


def shorten_middle(text: str, width: int) -> str:
    """`text` in at most `width` columns, with dots for what its middle had; ends tell names apart.

    Wide characters count twice, as a terminal draws them.
    """
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return _DOTS[: max(0, width)]
    front = (width - 1) * 2 // 5
    last = set_cell_size(text[::-1], width - 1 - front)[::-1]
    return f"{set_cell_size(text, front)}{_DOTS}{last}"


def column_widths(table: TableRows, width: int) -> list[tuple[int, int]]:
    """The columns that fit, in their order, with their widths; the name gets what is left.

    Columns are left out by their rank until the name has its own width, or a least one.
    """
    return _fitted(table.natural, tuple(column.rank for column in table.columns), width)


@lru_cache(maxsize=64)
def _fitted(natural: tuple[int, ...], ranks: tuple[int, ...], width: int) -> list[tuple[int, int]]:
    places = [place for place, size in enumerate(natural) if size or not place]
    least = min(natural[0], max(_LEAST_NAME, width // 2))
    while True:
        rest = sum(natural[place] + _GAP for place in places[1:])
        left = width - rest
        out = max(places, key=lambda place: ranks[place])
        if left >= least or not ranks[out]:
            break
        places.remove(out)
    name = max(1, min(natural[0], left) if len(places) > 1 else width)
    return [(place, natural[place] if place else name) for place in places]
