"""The explorer's Textual application."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import Binding

from bt_lightning.cli.explore.screens import FilesScreen, PickScreen
from bt_lightning.manage.checkpoint_items import find

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import JobCheckpoints


class Explorer(App[None]):
    """Explores the checkpoints of one job. Only reads, with one thread at a time."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "bt-lightning"
    CSS = """
    Screen { layers: base; }
    #title { height: 1; text-style: bold; background: $panel; padding: 0 1; }
    #filter { height: 1; border: none; padding: 0 1; background: $surface; }
    #foot { height: auto; max-height: 6; background: $panel; padding: 0 1; }
    #hints { height: 1; color: $text-muted; padding: 0 1; }
    #page { padding: 1 2; }
    """
    BINDINGS: ClassVar = [Binding("ctrl+c", "quit", "Quit", priority=True)]

    def __init__(
        self, source: JobCheckpoints, name: str | None = None, order: tuple[str, str] | None = None
    ) -> None:
        """`name` is the checkpoint to begin with; `order` is a sort key, and `asc` or `desc`.

        Raises `CheckpointNotFoundError`, before any screen is drawn, if there is no such name.
        """
        super().__init__()
        self.source = source
        self._first = None if name is None else find(source, name)
        self._order = order

    def on_mount(self) -> None:
        """Show the list, then the first checkpoint if one is named."""
        self.push_screen(PickScreen(self.source, self._order))
        if self._first is not None:
            self.push_screen(FilesScreen(self.source, self._first))
