"""The explorer's main screen: its panes, and what their keys do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bt_lightning.cli.explore import action_flows
from bt_lightning.cli.explore.checkpoint_rows import file_rows
from bt_lightning.cli.explore.contents import manifest_rows
from bt_lightning.cli.explore.keys import MAIN_KEYS
from bt_lightning.cli.explore.panes_screen import PANES, PanesScreen

if TYPE_CHECKING:
    from textual.binding import BindingType

    from bt_lightning.cli.explore.pane import Pane


class MainScreen(PanesScreen):
    """Three panes; one at a time where there are few columns."""

    BINDINGS: ClassVar[list[BindingType]] = MAIN_KEYS

    def on_pane_opened(self, message: Pane.Opened) -> None:
        """Open what was clicked."""
        message.pane.lines.focus()
        self.action_open()

    def action_pane(self, name: str) -> None:
        """Focus a pane."""
        self.focus_pane(name)

    def action_next_pane(self, by: int) -> None:
        """Focus the next pane."""
        at = PANES.index(self.front.id or "")
        self.focus_pane(PANES[(at + by) % len(PANES)])

    def action_open(self) -> None:
        """Open a checkpoint, a folder or a file."""
        name, path = self.front.id, self.chosen_path()
        if name == "checkpoints" and self.item is not None:
            self.focus_pane("files")
        elif name == "files" and path is not None and path.endswith("/"):
            self._turn(path)
        elif name == "files" and path is not None:
            self.focus_pane("content")

    def _turn(self, folder: str) -> None:
        """Open a folder, or close it."""
        files, item = self.pane("files"), self.item
        assert item is not None, "it has files"
        before = len(files.rows)
        for one, other in (
            (self._shut_folders, self._open_folders),
            (self._open_folders, self._shut_folders),
        ):
            one.add(folder)
            other.discard(folder)
            rows = file_rows(item.manifest, self._open_folders, self._shut_folders)
            if len(rows) != before:
                break
        files.put(rows)

    def action_back(self) -> None:
        """Go to the pane before, or clear its filter."""
        if self.front.end_filter(clear=True):
            return
        self.remove_class("zoomed")
        at = PANES.index(self.front.id or "")
        self.focus_pane(PANES[max(0, at - 1)])

    def action_filter(self) -> None:
        """Filter the names of the pane."""
        self.front.begin_filter()

    def action_leave_filter(self) -> None:
        """Go from the filter to the list."""
        self.front.end_filter(clear=False)

    def action_clear_filter(self) -> None:
        """Go from the filter to the whole list."""
        self.front.end_filter(clear=True)

    def action_sort(self, reverse: bool) -> None:
        """Sort by the next order, or the other way round."""
        self.front.sort(reverse=reverse)

    def action_metric(self) -> None:
        """Show the next metric."""
        self._metric += 1
        self.list_checkpoints()

    def action_mark(self) -> None:
        """Mark the chosen checkpoint, or take its mark away; then go on."""
        if self.front.id == "checkpoints" and self.item is not None:
            self.marked ^= {self.item.name}
            self.list_checkpoints()
            self.front.lines.action_move(1)

    def action_zoom(self) -> None:
        """Give the pane the whole width, or take it back."""
        self.toggle_class("zoomed")

    def action_refresh(self) -> None:
        """List again now."""
        self.refresh_list()

    def action_manifest(self) -> None:
        """Show the manifest of the chosen checkpoint."""
        item = self.item
        if item is not None:
            key = (item.manifest.digest, "manifest")
            self.show(f"{item.name}: manifest", key, lambda _: manifest_rows(item), focus=True)

    def action_cancel_task(self) -> None:
        """End what is under way at its next read or write."""
        if self.under_way is not None:
            self.under_way.cancel()

    def action_run(self, name: str) -> None:
        """Begin an action, which asks before it changes anything."""
        flow = action_flows.FLOWS[name]
        self.run_worker(flow(self), group="action", exit_on_error=True)

    def on_unmount(self) -> None:
        """Let nothing go on that nobody sees the end of."""
        self.action_cancel_task()
