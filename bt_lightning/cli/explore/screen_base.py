"""Base screens of the explorer: a list that typing filters, and a page of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, Static

from bt_lightning.cli.explore import view_text
from bt_lightning.cli.explore.fuzzy_match import best_matches, fuzzy
from bt_lightning.cli.explore.long_list import Lines
from bt_lightning.cli.render.text import printable

if TYPE_CHECKING:
    from textual.app import ComposeResult

_HELP = """\
Type            filter: letters in their order are enough
Up, Down        move; PageUp, PageDown, Home, End too
Enter           open a checkpoint, a folder or a file
Right           open a folder; of a file, its URL to download
Left            back
Shift+Right     what is beyond the edge; Shift+Left, back from there
Ctrl+D          mark a checkpoint, then compare another with it
Ctrl+O          the manifest of a checkpoint
Ctrl+N          another metric in the line below
Esc             clear the filter, or back
Ctrl+C          quit
?               this page
"""


class Filter(Input):
    """The filter's input; it leaves `?` to the list, which shows help."""

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Whether a key is text of the filter."""
        return character != "?" and super().check_consume_key(key, character)


class ListScreen(Screen[None]):
    """A list that typing filters."""

    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", priority=True),
        Binding("down", "move(1)", priority=True),
        Binding("pageup", "page(-1)", priority=True),
        Binding("pagedown", "page(1)", priority=True),
        Binding("home", "move(-1000000000)", priority=True),
        Binding("end", "move(1000000000)", priority=True),
        Binding("enter", "open", priority=True),
        Binding("right", "into", priority=True),
        Binding("left", "back", priority=True),
        Binding("shift+right", "sideways(1)", priority=True),
        Binding("shift+left", "sideways(-1)", priority=True),
        Binding("escape", "clear", priority=True),
        Binding("question_mark", "help", priority=True),
    ]
    hints = "type to filter   enter open   left back   ? keys   ctrl+c quit"

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._texts: list[str] = []
        self._lines: list[Text] | None = None
        self._found: list[int] = []

    def compose(self) -> ComposeResult:
        """Title, filter, list, foot, hints."""
        yield Static(Text(printable(self._title), no_wrap=True), id="title")
        yield Filter(placeholder="type to filter", id="filter", compact=True)
        yield Lines()
        yield Static("", id="foot")
        yield Static(self.hints, id="hints")

    def on_mount(self) -> None:
        """Focus the filter, and fill the list."""
        self.query_one(Input).focus()
        self.begin()

    def begin(self) -> None:
        """Fill the list; overridden by each screen."""

    def list_texts(self, texts: list[str], lines: list[Text] | None = None) -> None:
        """Show `texts`; `lines` are their drawn forms, if they differ from the texts."""
        self._texts, self._lines = texts, lines
        self._filter()

    def show_status(self, text: str, style: str = "") -> None:
        """Write `text` into the foot."""
        self.query_one("#foot", Static).update(Text(printable(text, keep="\n"), style=style))

    @property
    def chosen(self) -> int | None:
        """Index of the chosen text."""
        at = self.query_one(Lines).chosen
        return self._found[at] if 0 <= at < len(self._found) else None

    def on_input_changed(self) -> None:
        """Filter."""
        self._filter()

    def on_lines_clicked(self) -> None:
        """Open the clicked line."""
        self.action_open()

    def _filter(self) -> None:
        query = self.query_one(Input).value.strip()
        self._found = best_matches(query, self._texts)
        drawn = _FilteredLines(self._found, self._texts, self._lines, query)
        self.query_one(Lines).show(drawn)

    def action_move(self, by: int) -> None:
        """Move the choice."""
        self.query_one(Lines).move(by)

    def action_page(self, by: int) -> None:
        """Move the choice by a page."""
        lines = self.query_one(Lines)
        lines.move(by * max(1, lines.size.height - 1))

    def action_sideways(self, by: int) -> None:
        """Scroll to the right or to the left."""
        self.query_one(Lines).sideways(by)

    def action_open(self) -> None:
        """Open the chosen line."""

    def action_into(self) -> None:
        """Open the chosen line if it is a folder."""
        self.action_open()

    def action_back(self) -> None:
        """Leave this screen; the first one stays."""
        if len(self.app.screen_stack) > 2:  # noqa: PLR2004 - the app's own screen and the first
            self.app.pop_screen()

    def action_clear(self) -> None:
        """Clear the filter; without one, go back."""
        filter_input = self.query_one(Input)
        if filter_input.value:
            filter_input.value = ""
        else:
            self.action_back()

    def action_help(self) -> None:
        """Show the keys."""
        self.app.push_screen(PageScreen("Keys", Text(_HELP)))


class _FilteredLines(Sequence[Text]):
    """The lines of a filtered list, each drawn when it becomes visible."""

    def __init__(
        self, found: list[int], texts: list[str], lines: list[Text] | None, query: str
    ) -> None:
        self._found, self._texts, self._drawn_lines, self._query = found, texts, lines, query

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        index = self._found[at]
        if self._drawn_lines is not None and not self._query:
            return self._drawn_lines[index]
        fit = fuzzy(self._query, self._texts[index]) if self._query else None
        if self._drawn_lines is None:
            return view_text.marked(self._texts[index], fit[1] if fit else ())
        return self._drawn_lines[index]


class PageScreen(Screen[None]):
    """A page that left, Esc, q or Enter closes."""

    BINDINGS: ClassVar = [
        Binding(key, "app.pop_screen", priority=True) for key in ("left", "escape", "q", "enter")
    ]

    def __init__(self, title: str, page: Text) -> None:
        super().__init__()
        self._title, self._page = title, page

    def compose(self) -> ComposeResult:
        """Title and page."""
        yield Static(Text(printable(self._title)), id="title")
        with VerticalScroll():
            yield Static(self._page, id="page")
        yield Static("left, esc, q or enter: back", id="hints")
