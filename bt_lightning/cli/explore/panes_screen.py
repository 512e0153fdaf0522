"""Three panes that follow each other: checkpoints, files of the chosen one, and their content."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Static

from bt_lightning.cli.explore.background import read_in_background
from bt_lightning.cli.explore.checkpoint_rows import (
    checkpoint_rows,
    file_rows,
    metric_names,
    metric_values,
    same_listing,
    trend_line,
)
from bt_lightning.cli.explore.contents import overview_of
from bt_lightning.cli.explore.file_preview import file_preview
from bt_lightning.cli.explore.keys import hint_text
from bt_lightning.cli.explore.pane import Pane
from bt_lightning.cli.explore.table_rows import TextRows, shorten_middle
from bt_lightning.cli.render.checkpoint_table import METRIC, check_metric, sort_items
from bt_lightning.cli.render.text import printable
from bt_lightning.human_units import human_size
from bt_lightning.manage.checkpoint_kind import checkpoint_kind
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.jobs_beside import for_another_thread, listed_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events
    from textual.app import ComposeResult

    from bt_lightning.cli.explore.table_rows import Rows
    from bt_lightning.cli.explore.task_progress import TaskProgress
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.checkpoint_kind import CheckpointKind

_NARROW = 90
"""Columns under which one pane is shown at a time."""
_TICK_S = 0.5
_LEAST_PAUSE_S, _STORE_PAUSE_S = 2.0, 10.0
"""Between two listings of a directory, and of a store, which counts requests."""
_LISTING_PART = 20
"""Listing takes at most one part of so many of the time."""
PANES = ("checkpoints", "files", "content")
_MOST_KEPT = 64


class PanesScreen(Screen[None]):
    """The panes and what they list; its subclass has the keys."""

    def __init__(
        self, source: JobCheckpoints, order: tuple[str, str] | None, first: CheckpointItem | None
    ) -> None:
        super().__init__()
        self.source = source
        self.items: list[CheckpointItem] = []
        self.marked: frozenset[str] = frozenset()
        self.under_way: TaskProgress | None = None
        self._kinds: list[CheckpointKind] = []
        self._given_order, self._first = order, first
        self._metric = 0
        self._open_folders: set[str] = set()
        self._shut_folders: set[str] = set()
        self._files_of = ""
        self._kept: dict[object, Rows] = {}
        self._shown_key: object = None
        self._is_listing, self._listed_at, self._listing_s = False, 0.0, 0.0
        self._is_failing, self._listed_once = False, False

    def compose(self) -> ComposeResult:
        """Title, panes, what is under way, keys."""
        yield Static("", id="title")
        with Horizontal(id="panes"):
            with Vertical(id="left"):
                yield Pane(1, "Checkpoints", id="checkpoints")
                yield Pane(2, "Files", id="files")
            yield Pane(3, "Content", id="content")
        yield Static("", id="status")
        yield Static("", id="hints")

    def on_mount(self) -> None:
        """Focus the checkpoints and list them."""
        self.pane("checkpoints").lines.focus()
        self.say("reading ...")
        self.refresh_list()
        self.set_interval(_TICK_S, self._tick)

    def pane(self, name: str) -> Pane:
        """The pane of that name."""
        return self.query_one(f"#{name}", Pane)

    @property
    def front(self) -> Pane:
        """The pane that has the focus, or had it last."""
        name = next((name for name in PANES if self.has_class(f"front-{name}")), PANES[0])
        return self.pane(name)

    @property
    def item(self) -> CheckpointItem | None:
        """The chosen checkpoint."""
        chosen = self.pane("checkpoints").chosen
        return self.items[chosen] if chosen is not None and chosen < len(self.items) else None

    @property
    def metric(self) -> str | None:
        """The metric of the column."""
        names = metric_names(self.items)
        return names[self._metric % len(names)] if names else None

    def selected(self) -> list[CheckpointItem]:
        """The marked checkpoints, else the chosen one."""
        found = [item for item in self.items if item.name in self.marked]
        return found or ([self.item] if self.item is not None else [])

    # -- what is said beside the panes

    def say(self, text: str, style: str = "") -> None:
        """Write a line under the panes."""
        self.query_one("#status", Static).update(
            Text(printable(text, keep="\n"), style=style, no_wrap=style != "red")
        )

    def _say_title(self) -> None:
        size = human_size(sum(item.manifest.size for item in self.items))
        several = "" if len(self.items) == 1 else "s"
        said = f"{len(self.items):,} checkpoint{several}, {size}"
        job = f"{printable(self.source.project)} / {printable(self.source.job)}"
        left = self.size.width - len(said) - len(job) - 8
        where = shorten_middle(printable(self.source.name), left) if left > 16 else ""  # noqa: PLR2004
        text = Text.assemble((job, "bold"), "  ", said, "  ", (where, "dim"), no_wrap=True)
        self.query_one("#title", Static).update(text)

    def _say_hints(self) -> None:
        name = self.front.id or ""
        self.query_one("#hints", Static).update(hint_text(name, self.size.width - 2))

    def _tick(self) -> None:
        """Show the progress of an action; list again when it is time."""
        if self.under_way is not None:
            self.say(self.under_way.line(self.size.width - 2))
        is_local = isinstance(self.source, DirectoryCheckpoints)
        least = _LEAST_PAUSE_S if is_local else _STORE_PAUSE_S
        pause = max(least, _LISTING_PART * self._listing_s)
        due = time.monotonic() - self._listed_at >= pause
        if due and not self._is_listing and getattr(self.app, "is_live", True):
            self.refresh_list()

    # -- the list of checkpoints

    def refresh_list(self, source: JobCheckpoints | None = None) -> None:
        """List again in a thread, of `source` if another job is to be shown."""
        is_other, again = source is not None, listed_again(source or self.source)
        self._is_listing, began = True, time.monotonic()
        listed, kinds = self.items, self._kinds

        def read() -> tuple[list[CheckpointItem], list[CheckpointKind]]:
            items = again.items()
            if self._given_order is not None and not is_other:
                check_metric(self._given_order[0], items)
                items = sort_items(again, items, *self._given_order)
            if same_listing(items, listed):  # what they are was read before
                return items, kinds
            return items, checkpoint_kind([(again, item) for item in items])

        def done() -> None:
            self._is_listing = False
            self._listed_at = time.monotonic()
            self._listing_s = self._listed_at - began

        def show(found: tuple[list[CheckpointItem], list[CheckpointKind]]) -> None:
            done()
            if self._is_failing:
                self._is_failing = False
                self.say("")
            self.source = again
            if is_other:
                self._begin_anew()
            self._take(*found, is_same=not is_other and same_listing(found[0], self.items))

        def fail(said: str) -> None:
            done()
            self._is_failing = True
            self.say(said, "red")

        read_in_background(self, "list", read, show, fail)

    def _begin_anew(self) -> None:
        self.marked = frozenset()
        self._files_of, self._kept = "", {}
        self._given_order, self._metric = None, 0
        self.items = []
        self.pane("checkpoints").put(TextRows(()), from_top=True)

    def _take(
        self, items: list[CheckpointItem], kinds: list[CheckpointKind], *, is_same: bool
    ) -> None:
        is_first = not self._listed_once
        self._listed_once = True
        if is_same and not is_first:
            return
        self.items, self._kinds = items, kinds
        self.marked &= {item.name for item in items}
        if self._given_order is not None and is_first:
            wanted = self._given_order[0].removeprefix(METRIC)
            names = metric_names(items)
            self._metric = names.index(wanted) if wanted in names else 0
        self.list_checkpoints()
        if is_first or not items:
            self.say("" if items else "No checkpoints here.")
        if self._first is not None:
            self.pane("checkpoints").choose(self._first.name)
            self._first = None
            self.focus_pane("files")

    def list_checkpoints(self) -> None:
        """Draw the list, with the marks and the metric as they are."""
        pane = self.pane("checkpoints")
        pane.put(checkpoint_rows(self.items, self._kinds, self.metric, self.marked))
        self._say_title()
        self.call_after_refresh(self._say_trend)
        self._show_chosen(again=True)

    def _say_trend(self) -> None:
        pane, metric = self.pane("checkpoints"), self.metric
        if metric is None:
            pane.border_subtitle = ""
            return
        width = max(20, min(60, pane.size.width - 8 - len(printable(metric))))
        line = Text(f"{printable(metric)} {trend_line(metric_values(self.items, metric), width)}")
        pane.border_subtitle = line.markup

    # -- what is chosen

    def on_pane_moved(self, message: Pane.Moved) -> None:
        """Show what is chosen now."""
        if message.pane.id in {"checkpoints", "files"}:
            self._show_chosen(again=False)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Bring the pane to the front."""
        for pane in event.widget.ancestors_with_self:
            if isinstance(pane, Pane):
                for name in PANES:
                    self.set_class(pane.id == name, f"front-{name}")
                self._say_hints()
                self._show_chosen(again=False)
                return

    def on_resize(self) -> None:
        """Show one pane at a time where there are few columns."""
        self.set_class(self.size.width < _NARROW, "narrow")
        if self.is_mounted and self.query("#title"):
            self._say_title()
            self._say_hints()
            self.call_after_refresh(self._say_trend)

    def _show_chosen(self, *, again: bool) -> None:
        """List the files of the chosen checkpoint; show its facts, or the chosen file."""
        item = self.item
        if item is None:
            self.pane("files").put(TextRows(()))
            self._put_content("Content", TextRows(()), None)
            return
        files = self.pane("files")
        if item.manifest.digest != self._files_of:
            self._files_of = item.manifest.digest
            files.put(file_rows(item.manifest, self._open_folders, self._shut_folders))
        if self.front.id == "content" and not again:
            return  # what is read there stays
        path = self.chosen_path()
        if self.front.id != "checkpoints" and path and not path.endswith("/"):
            entry = item.manifest.entry(path)
            if entry is not None:
                key = (item.manifest.digest, path)
                title = f"{item.name}/{path}"
                self.show(title, key, lambda source: file_preview(source, item, entry))
            return
        if self.front.id == "content":
            return
        items = self.items
        known = (item.name, item.manifest.digest, item.protected, len(self.items))
        self.show(item.name, known, lambda source: overview_of(source, item, items))

    def chosen_path(self) -> str | None:
        """The chosen file, or folder with a `/` at its end."""
        files = self.pane("files")
        if files.chosen is None or isinstance(files.rows, TextRows):
            return None
        return str(files.rows.row_id(files.chosen))

    def show(
        self,
        title: str,
        key: object,
        read: Callable[[JobCheckpoints], Rows],
        *,
        focus: bool = False,
    ) -> None:
        """Show in the content pane what `read` gives, which runs in a thread; keys are kept."""
        if focus:
            self.focus_pane("content")
        if key == self._shown_key:
            return
        self._shown_key = key
        if key in self._kept:
            self.workers.cancel_group(self, "read content")
            self._put_content(title, self._kept[key], key)
            return
        source = for_another_thread(self.source)

        def got(rows: Rows) -> None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = rows
            self._put_content(title, rows, key)

        def failed(said: str) -> None:
            self._put_content(title, TextRows([Text(printable(said), style="red")]), key)
            self._shown_key = None  # to be read again when it is chosen again

        read_in_background(self, "content", lambda: read(source), got, failed, pause=True)

    def _put_content(self, title: str, rows: Rows, key: object) -> None:
        content = self.pane("content")
        content.call(title)
        content.put(rows, from_top=True)
        self._shown_key = key

    def put_result(self, title: str, rows: Rows) -> None:
        """Show what an action found, until something else is chosen."""
        self.workers.cancel_group(self, "read content")
        self.focus_pane("content")
        self._put_content(title, rows, object())

    def focus_pane(self, name: str) -> None:
        """Bring a pane to the front."""
        for one in PANES:
            self.set_class(one == name, f"front-{one}")
        self.pane(name).lines.focus()
