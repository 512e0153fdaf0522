"""The explorer's Textual application."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.traceback import Traceback
from textual.app import App
from textual.binding import Binding
from textual.theme import Theme

from bt_lightning.cli.explore.main_screen import MainScreen
from bt_lightning.cli.explore.styles import STYLES
from bt_lightning.manage.checkpoint_items import find

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import JobCheckpoints

_THEME = Theme(
    name="terminal",
    primary="ansi_blue",
    secondary="ansi_cyan",
    warning="ansi_magenta",
    error="ansi_red",
    success="ansi_green",
    accent="ansi_green",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
)
"""The terminal's own colours: readable wherever its text is, on dark and on light."""


class Explorer(App[None]):
    """Explores the checkpoints of a job, and looks after them.

    What changes anything asks first. Files are read and actions run in threads.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "bt-lightning"
    CSS = STYLES
    BINDINGS: ClassVar = [Binding("ctrl+c", "quit", "Quit", priority=True)]

    def __init__(
        self,
        source: JobCheckpoints,
        name: str | None = None,
        order: tuple[str, str] | None = None,
        *,
        is_live: bool = True,
    ) -> None:
        """`name` is the checkpoint to begin with; `order` is a sort key, and `asc` or `desc`.

        With `is_live`, checkpoints are listed again by themselves.

        Raises `CheckpointNotFoundError`, before any screen is drawn, if there is no such name.
        """
        super().__init__(ansi_color=True)
        self.is_live = is_live
        self._first = None if name is None else find(source, name)
        self._source, self._order = source, order

    def _fatal_error(self) -> None:
        """End with the traceback of an unexpected error, without values: one may be a secret."""
        self.panic(Traceback(show_locals=False))

    def on_mount(self) -> None:
        """Show the main screen."""
        self.register_theme(_THEME)
        self.theme = _THEME.name
        self.push_screen(MainScreen(self._source, self._order, self._first))
