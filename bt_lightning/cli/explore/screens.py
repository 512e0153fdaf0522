"""The explorer's screens: the list of checkpoints, a checkpoint's files, a file's lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.binding import Binding
from textual.worker import get_current_worker

from bt_lightning.cli.explore import view_text
from bt_lightning.cli.explore.file_preview import file_lines
from bt_lightning.cli.explore.long_list import Lines
from bt_lightning.cli.explore.screen_base import ListScreen, PageScreen
from bt_lightning.cli.render.checkpoint_table import check_metric, sort_items
from bt_lightning.cli.render.text import printable
from bt_lightning.errors import CheckpointError
from bt_lightning.human_units import human_size
from bt_lightning.manage.checkpoint_kind import checkpoint_kind
from bt_lightning.manage.compare_tensors import compare_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry

_URL_S = 3600


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class PickScreen(ListScreen):
    """The checkpoints of a job."""

    hints = "enter open  ctrl+d compare  ctrl+o manifest  ctrl+n metric  ? keys"
    BINDINGS: ClassVar = [
        Binding("ctrl+d", "compare", priority=True),
        Binding("ctrl+o", "manifest", priority=True),
        Binding("ctrl+n", "metric", priority=True),
    ]

    def __init__(self, source: JobCheckpoints, order: tuple[str, str] | None = None) -> None:
        super().__init__(f"Checkpoints of {source.job}")
        self._order = order
        self._source = source
        self._items: list[CheckpointItem] = []
        self._marked: CheckpointItem | None = None
        self._metric = 0

    def begin(self) -> None:
        """Read the list in another thread, so that the screen appears at once."""
        self.show_status("reading ...")
        self._read()

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        try:
            items = self._source.items()
            if self._order is not None:
                check_metric(self._order[0], items)
                items = sort_items(self._source, items, *self._order)
            texts = view_text.labels(
                items, checkpoint_kind([(self._source, item) for item in items])
            )
        except (CheckpointError, OSError, MemoryError) as error:
            self.app.call_from_thread(self.show_status, _reason(error), "red")
            return
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._show, items, texts)

    def _show(self, items: list[CheckpointItem], texts: list[str]) -> None:
        self._items = items
        self.show_status("" if items else "No checkpoints here.")
        self.list_texts(texts)

    def on_screen_resume(self) -> None:
        """Update the foot: the mark may have changed on another screen."""
        self.on_lines_chosen()

    def on_lines_chosen(self) -> None:
        """Show the facts of the chosen checkpoint."""
        if self.chosen is None or not self._items:
            return
        item = self._items[self.chosen]
        names = sorted({name for one in self._items for name in one.manifest.metrics})
        said = [view_text.facts(item)]
        if names:
            metric = names[self._metric % len(names)]
            said.append(view_text.trend(self._items, metric, self.size.width - 2))
        if self._marked is not None:
            said.append(f"marked: {self._marked.name}; ctrl+d on another compares them")
        self.show_status("\n".join(said))

    def action_open(self) -> None:
        """Open the chosen checkpoint."""
        if self.chosen is not None:
            self.app.push_screen(FilesScreen(self._source, self._items[self.chosen]))

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

        def compare() -> list[Text]:
            return view_text.difference_lines(
                compare_items(self._source, before, self._source, item)
            )

        self.app.push_screen(LinesScreen(f"{before.name} -> {item.name}", compare))


class FilesScreen(ListScreen):
    """The folders and files of a checkpoint."""

    hints = "enter open   right folder, or URL of a file   left back   ? keys   ctrl+c quit"

    def __init__(self, source: JobCheckpoints, item: CheckpointItem, folder: str = "") -> None:
        super().__init__(f"{source.job}/{item.name}/{folder}")
        self._source, self._item, self._folder = source, item, folder
        self._entries = view_text.folder_lines(item.manifest, folder)

    def begin(self) -> None:
        """Fill the list from the manifest."""
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
        source, item = self._source, self._item
        self.app.push_screen(
            LinesScreen(
                f"{item.name}/{entry.path}  {human_size(entry.size)}",
                lambda: file_lines(source, item, entry),
            )
        )

    def action_into(self) -> None:
        """Open a folder, or show the URL of a file."""
        chosen = self._chosen_entry()
        if chosen is None:
            return
        name, entry = chosen
        if entry is None:
            self._enter(name)
            return
        try:
            url = self._source.url(self._item, entry.path, _URL_S)
        except (CheckpointError, OSError) as error:
            self.show_status(_reason(error), "red")
            return
        lasts = f"\n\nfor {_URL_S // 60} minutes" if "?" in url else ""  # the URL is signed
        said = Text(f"{printable(entry.path)}\n\n{printable(url)}{lasts}")
        self.app.push_screen(PageScreen("URL", said))

    def _enter(self, name: str) -> None:
        folder = f"{self._folder}/{name}" if self._folder else name
        self.app.push_screen(FilesScreen(self._source, self._item, folder))

    def _chosen_entry(self) -> tuple[str, FileEntry | None] | None:
        if self.chosen is None:
            return None
        if self.chosen == 0:
            self.action_back()
            return None
        name, entry, _ = self._entries[self.chosen - 1]
        return name, entry


class LinesScreen(ListScreen):
    """Lines that are read in the background."""

    hints = "type to filter  shift+left, shift+right sideways  left back  ctrl+c quit"

    def __init__(self, title: str, read: Callable[[], Sequence[Text]]) -> None:
        super().__init__(title)
        self._read_lines = read

    def begin(self) -> None:
        """Read in another thread."""
        self.show_status("reading ...")
        self._read()

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        try:
            lines = list(self._read_lines())
        except (CheckpointError, OSError, MemoryError) as error:
            self.app.call_from_thread(self.show_status, _reason(error), "red")
            return
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._show, lines)

    def _show(self, lines: list[Text]) -> None:
        self.show_status("")
        self.list_texts([line.plain for line in lines], lines)
