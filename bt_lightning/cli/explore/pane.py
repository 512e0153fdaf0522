"""A pane: a titled list that is filtered by names and sorted, and keeps its place when it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static

from bt_lightning.cli.explore.fuzzy_match import matching
from bt_lightning.cli.explore.long_list import Lines
from bt_lightning.cli.explore.table_rows import Rows, TableRows, TextRows
from bt_lightning.cli.render.text import printable

if TYPE_CHECKING:
    from textual.app import ComposeResult


class Filter(Input):
    """The filter of a pane; Enter and the arrows go back to its list."""

    BINDINGS: ClassVar = [
        Binding("enter,down,up", "screen.leave_filter", priority=True),
        Binding("escape", "screen.clear_filter", priority=True),
    ]


class Pane(Vertical):
    """A list under a title that says how many rows there are and how they are sorted."""

    class Moved(Message):
        """Sent when another row is chosen."""

        def __init__(self, pane: Pane) -> None:
            super().__init__()
            self.pane = pane

    class Opened(Message):
        """Sent when the chosen row is clicked."""

        def __init__(self, pane: Pane) -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, number: int, title: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._number, self._called = number, title
        self.rows: Rows = TextRows(())
        self._shown: list[int] = []
        self._order = ""
        self._reversed = False

    def compose(self) -> ComposeResult:
        """Column titles, list, filter."""
        yield Static("", classes="head")
        yield Lines()
        yield Filter(placeholder="filter by name", classes="filter", compact=True)

    def on_mount(self) -> None:
        """Hide what is empty."""
        self.query_one(Filter).display = False
        self._say()

    @property
    def lines(self) -> Lines:
        """The list."""
        return self.query_one(Lines)

    @property
    def query_text(self) -> str:
        """What is typed into the filter."""
        return self.query_one(Filter).value.strip()

    @property
    def chosen(self) -> int | None:
        """Index, in `rows`, of the chosen row."""
        at = self.lines.chosen
        return self._shown[at] if 0 <= at < len(self._shown) else None

    @property
    def order(self) -> tuple[str, bool]:
        """Name of the order, and whether it is reversed."""
        return self._order, self._reversed

    def call(self, title: str) -> None:
        """Give it another title."""
        self._called = title
        self._say()

    def put(self, rows: Rows, *, from_top: bool = False) -> None:
        """List other rows; the chosen one stays chosen, at its place on the screen.

        If it is gone, the row at its place is chosen; `from_top`, the first one.
        """
        chosen, lines = self.chosen, self.lines
        before = None if chosen is None else self.rows.row_id(chosen)
        beyond = lines.chosen - lines.scroll_offset.y
        self.rows = rows
        if self._order not in rows.orders:
            self._order, self._reversed = next(iter(rows.orders)), False
        self._choose_rows()
        at = 0 if from_top else lines.chosen
        if not from_top and before is not None:
            ids = (i for i, index in enumerate(self._shown) if rows.row_id(index) == before)
            at = next(ids, at)
        self._show(at)
        if not from_top and beyond >= 0:
            lines.scroll_to(y=max(0, lines.chosen - beyond), animate=False, force=True)

    def sort(self, order: str | None = None, *, reverse: bool = False) -> None:
        """Sort by the next order, or by a named one; or the other way round."""
        names = list(self.rows.orders)
        if reverse:
            self._reversed = not self._reversed
        elif order is None:
            self._order = names[(names.index(self._order) + 1) % len(names)]
            self._reversed = False
        else:
            self._order = order
        chosen = self.chosen
        self._choose_rows()
        self._show(self._shown.index(chosen) if chosen in self._shown else 0)

    def choose(self, row_id: object) -> None:
        """Choose the row of that id, if it is listed."""
        for at, index in enumerate(self._shown):
            if self.rows.row_id(index) == row_id:
                self.lines.chosen = at
                return

    def begin_filter(self) -> None:
        """Open the filter."""
        one = self.query_one(Filter)
        one.display = True
        one.focus()

    def end_filter(self, *, clear: bool) -> bool:
        """Go back to the list; with `clear`, to all of it. Returns whether a filter was on."""
        one = self.query_one(Filter)
        was_on = one.display
        if clear:
            one.value = ""
        one.display = bool(one.value)
        if was_on or one.has_focus:
            self.lines.focus()
        return was_on

    def on_input_changed(self) -> None:
        """Filter."""
        self._choose_rows()
        self._show(0)

    def on_lines_chosen(self) -> None:
        """Say so."""
        self._say()
        self.post_message(self.Moved(self))

    def on_lines_clicked(self) -> None:
        """Say so."""
        self.post_message(self.Opened(self))

    def on_resize(self) -> None:
        """Titles stand over their columns."""
        self._say()

    def _choose_rows(self) -> None:
        """Choose the rows in their order; lines without a name are first, and not filtered."""
        rows, query = self.rows, self.query_text
        names = [rows.name(index) for index in range(len(rows))]
        named = [index for index, name in enumerate(names) if name is not None]
        keys = rows.orders.get(self._order)
        if keys is not None:
            first = len(rows) - len(keys)
            known = [index for index in named if keys[index - first] is not None]
            known.sort(key=lambda index: keys[index - first], reverse=self._reversed)
            named = known + [index for index in named if keys[index - first] is None]
        elif self._reversed:
            named.reverse()
        if query:
            found = matching(query, [names[index] or "" for index in named])
            self._shown = [named[at] for at in found]
        else:
            self._shown = [i for i, name in enumerate(names) if name is None] + named

    def _show(self, at: int) -> None:
        shown, rows, query = self._shown, self.rows, self.query_text

        def draw(index: int, width: int) -> Text:
            return rows.draw(shown[index], width, query)

        self.lines.show(len(shown), draw, rows.wide, at)
        self._say()

    def _say(self) -> None:
        if not self.is_mounted:
            return
        head = self.rows.head(max(1, self.lines.size.width))
        shown = self.query_one(".head", Static)
        shown.display = head is not None
        shown.update(head or "")
        called = Text(f"{self._number} {printable(self._called)}")
        above = sum(self.rows.name(index) is None for index in range(min(len(self.rows), 64)))
        total = len(self.rows) - above
        if self.query_text:
            called.append(f" {len(self._shown)} of {total:,}")
        elif total and isinstance(self.rows, TableRows):
            called.append(f" {total:,}")
        if self._order or self._reversed:
            called.append(f" by {self._order}" if self._order else "")
            called.append(", reversed" if self._reversed else "")
        self.border_title = called.markup
