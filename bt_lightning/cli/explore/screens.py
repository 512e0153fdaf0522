"""The explorer's screens: checkpoints, their files, and what is in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import work
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from bt_lightning.cli.explore import views
from bt_lightning.cli.explore.fuzzy import best, fuzzy
from bt_lightning.cli.explore.lines import Lines
from bt_lightning.cli.explore.reading import file_lines
from bt_lightning.cli.text import human_size, printable
from bt_lightning.errors import CheckpointError
from bt_lightning.manage.compare import compare_items

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult

    from bt_lightning.manage.shelf import Item, Shelf
    from bt_lightning.manifest import FileEntry

_URL_S = 3600
_HELP = """\
Type            filter: letters in their order are enough
Up, Down        move; PageUp, PageDown, Home, End too
Enter           open a checkpoint, a folder or a file
Right           open a folder; of a file, its URL to download
Left            back
Ctrl+D          mark a checkpoint, then compare another with it
Ctrl+O          the manifest of a checkpoint
Ctrl+N          another metric in the line below
Esc             clear the filter, or back
Ctrl+C          quit
?               this page
"""


class Filter(Input):
    """What is typed; but for `?`, which is a key of every list."""

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Whether a key is text here."""
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
        """Keys go to the filter, but for those that move."""
        self.query_one(Input).focus()
        self.begin()

    def begin(self) -> None:
        """Find out what is to be listed."""

    def list_texts(self, texts: list[str], lines: list[Text] | None = None) -> None:
        """List these; `lines` is how they are drawn, if otherwise than as they are."""
        self._texts, self._lines = texts, lines
        self._filter()

    def say(self, text: str, style: str = "") -> None:
        """Write something into the foot."""
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
        """As Enter."""
        self.action_open()

    def _filter(self) -> None:
        query = self.query_one(Input).value.strip()
        self._found = best(query, self._texts)
        drawn = _Drawn(self._found, self._texts, self._lines, query)
        self.query_one(Lines).show(drawn)

    def action_move(self, by: int) -> None:
        """Move the choice."""
        self.query_one(Lines).move(by)

    def action_page(self, by: int) -> None:
        """Move the choice by what is seen."""
        lines = self.query_one(Lines)
        lines.move(by * max(1, lines.size.height - 1))

    def action_open(self) -> None:
        """Open what is chosen."""

    def action_into(self) -> None:
        """Open what is chosen, if it holds others."""
        self.action_open()

    def action_back(self) -> None:
        """Leave this screen; the first one stays."""
        if len(self.app.screen_stack) > 2:  # noqa: PLR2004 - below is the app's own, and the first
            self.app.pop_screen()

    def action_clear(self) -> None:
        """Drop the filter; without one, go back."""
        filled = self.query_one(Input)
        if filled.value:
            filled.value = ""
        else:
            self.action_back()

    def action_help(self) -> None:
        """Show the keys."""
        self.app.push_screen(PageScreen("Keys", Text(_HELP)))


class _Drawn(Sequence[Text]):
    """The lines of a filtered list, each drawn when it is seen."""

    def __init__(
        self, found: list[int], texts: list[str], lines: list[Text] | None, query: str
    ) -> None:
        self._found, self._texts, self._own, self._query = found, texts, lines, query

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        index = self._found[at]
        if self._own is not None and not self._query:
            return self._own[index]
        fit = fuzzy(self._query, self._texts[index]) if self._query else None
        if self._own is None:
            return views.marked(self._texts[index], fit[1] if fit else ())
        return self._own[index]


class PickScreen(ListScreen):
    """The checkpoints of a job."""

    hints = "enter open   ctrl+d mark, then compare   ctrl+o manifest   ctrl+n metric   ? keys"
    BINDINGS: ClassVar = [
        Binding("ctrl+d", "compare", priority=True),
        Binding("ctrl+o", "manifest", priority=True),
        Binding("ctrl+n", "metric", priority=True),
    ]

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(f"Checkpoints of {shelf.job}")
        self._shelf = shelf
        self._items: list[Item] = []
        self._marked: Item | None = None
        self._metric = 0

    def begin(self) -> None:
        """Read the list in another thread: the screen is there at once."""
        self.say("reading ...")
        self._read()

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        try:
            items = self._shelf.items()
        except CheckpointError as error:
            self.app.call_from_thread(self.say, str(error), "red")
            return
        texts = views.labels(items)
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._show, items, texts)

    def _show(self, items: list[Item], texts: list[str]) -> None:
        self._items = items
        self.say("" if items else "No checkpoints here.")
        self.list_texts(texts)

    def on_screen_resume(self) -> None:
        """Back from another screen: the mark may be gone."""
        self.on_lines_chosen()

    def on_lines_chosen(self) -> None:
        """Show the numbers of what is chosen."""
        if self.chosen is None or not self._items:
            return
        item = self._items[self.chosen]
        names = sorted({name for one in self._items for name in one.manifest.metrics})
        said = [views.facts(item)]
        if names:
            metric = names[self._metric % len(names)]
            said.append(views.trend(self._items, metric, self.size.width - 2))
        if self._marked is not None:
            said.append(f"marked: {self._marked.name}; ctrl+d on another compares them")
        self.say("\n".join(said))

    def action_open(self) -> None:
        """Look into the checkpoint."""
        if self.chosen is not None:
            self.app.push_screen(FilesScreen(self._shelf, self._items[self.chosen]))

    def action_metric(self) -> None:
        """Draw the next metric."""
        self._metric += 1
        self.on_lines_chosen()

    def action_manifest(self) -> None:
        """Show the manifest."""
        if self.chosen is not None:
            item = self._items[self.chosen]
            text = item.manifest.to_bytes().decode()
            lines = [Text(printable(line), no_wrap=True) for line in text.splitlines()]
            self.app.push_screen(LinesScreen(f"{item.name}: manifest", lambda: lines))

    def action_compare(self) -> None:
        """Mark the chosen one; with another marked, compare the two."""
        if self.chosen is None:
            return
        item, before = self._items[self.chosen], self._marked
        if before is None or before == item:
            self._marked = None if before else item
            self.on_lines_chosen()
            return
        self._marked = None

        def compared() -> list[Text]:
            return views.difference_lines(compare_items(self._shelf, before, self._shelf, item))

        self.app.push_screen(LinesScreen(f"{before.name} -> {item.name}", compared))


class FilesScreen(ListScreen):
    """The folders and files of a checkpoint."""

    hints = "enter open   right folder, or URL of a file   left back   ? keys   ctrl+c quit"

    def __init__(self, shelf: Shelf, item: Item, folder: str = "") -> None:
        super().__init__(f"{shelf.job}/{item.name}/{folder}")
        self._shelf, self._item, self._folder = shelf, item, folder
        self._entries = views.entries(item.manifest, folder)

    def begin(self) -> None:
        """All is known from the manifest."""
        texts = ["..", *(line for _, _, line in self._entries)]
        styles = ["", *("green" if entry is None else "" for _, entry, _ in self._entries)]
        drawn = [Text(t, style=s, no_wrap=True) for t, s in zip(texts, styles, strict=True)]
        self.list_texts(texts, drawn)
        self.query_one(Lines).move(1)

    def action_open(self) -> None:
        """Open a folder, or read a file."""
        chosen = self._chosen_entry()
        if chosen is None:
            return
        name, entry = chosen
        if entry is None:
            self._enter(name)
            return
        shelf, item = self._shelf, self._item
        self.app.push_screen(
            LinesScreen(
                f"{item.name}/{entry.path}  {human_size(entry.size)}",
                lambda: file_lines(shelf, item, entry),
            )
        )

    def action_into(self) -> None:
        """Open a folder, or show where a file can be downloaded."""
        chosen = self._chosen_entry()
        if chosen is None:
            return
        name, entry = chosen
        if entry is None:
            self._enter(name)
            return
        try:
            url = self._shelf.url(self._item, entry.path, _URL_S)
        except CheckpointError as error:
            self.say(str(error), "red")
            return
        said = Text(f"{printable(entry.path)}\n\n{printable(url)}\n\nfor {_URL_S // 60} minutes")
        self.app.push_screen(PageScreen("URL", said))

    def _enter(self, name: str) -> None:
        folder = f"{self._folder}/{name}" if self._folder else name
        self.app.push_screen(FilesScreen(self._shelf, self._item, folder))

    def _chosen_entry(self) -> tuple[str, FileEntry | None] | None:
        if self.chosen is None:
            return None
        if self.chosen == 0:
            self.action_back()
            return None
        name, entry, _ = self._entries[self.chosen - 1]
        return name, entry


class LinesScreen(ListScreen):
    """Lines that take a moment to be read."""

    hints = "type to filter   left, esc back   ctrl+c quit"

    def __init__(self, title: str, read: Callable[[], Sequence[Text]]) -> None:
        super().__init__(title)
        self._read_lines = read

    def begin(self) -> None:
        """Read in another thread."""
        self.say("reading ...")
        self._read()

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        try:
            lines = list(self._read_lines())
        except (CheckpointError, OSError) as error:
            self.app.call_from_thread(self.say, str(error), "red")
            return
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._show, lines)

    def _show(self, lines: list[Text]) -> None:
        self.say("")
        self.list_texts([line.plain for line in lines], lines)


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
