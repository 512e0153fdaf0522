"""A list widget of any length that draws only the visible lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text
    from textual import events


class Lines(ScrollView, can_focus=True):
    """Lines of text, one of which is chosen."""

    DEFAULT_CSS = "Lines { height: 1fr; scrollbar-size: 1 1; }"
    BINDINGS: ClassVar = [
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup,ctrl+b", "page(-1)"),
        Binding("pagedown,ctrl+f", "page(1)"),
        Binding("home", "move(-1000000000)"),
        Binding("end,G", "move(1000000000)"),
        Binding("shift+right,greater_than_sign", "sideways(1)"),
        Binding("shift+left,less_than_sign", "sideways(-1)"),
    ]
    chosen: reactive[int] = reactive(0)

    class Chosen(Message):
        """Sent when another line is chosen."""

        def __init__(self, lines: Lines) -> None:
            super().__init__()
            self.lines = lines

        @property
        def control(self) -> Lines:
            """The list that it is of."""
            return self.lines

    class Clicked(Message):
        """Sent when the chosen line is clicked."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0
        self._draw: Callable[[int, int], Text] | None = None

    def show(
        self, number: int, draw: Callable[[int, int], Text], wide: int, chosen: int = 0
    ) -> None:
        """Replace the lines: `draw(index, width)` gives one; `wide` is that of the widest."""
        self._number, self._draw = number, draw
        self.virtual_size = Size(wide, number)
        before = self.chosen
        self.chosen = self.validate_chosen(chosen)
        if self.chosen == before:
            self.watch_chosen(before)
        self.refresh()

    def action_move(self, by: int) -> None:
        """Move the choice by `by` lines."""
        self.chosen += by

    def action_page(self, by: int) -> None:
        """Move the choice by pages."""
        self.chosen += by * max(1, self.size.height - 1)

    def action_sideways(self, by: int) -> None:
        """Scroll by half of the width, to the right (1) or to the left (-1)."""
        self.scroll_relative(x=by * max(1, self.size.width // 2), animate=False)

    def validate_chosen(self, chosen: int) -> int:
        """Keep the choice within the lines."""
        return max(0, min(chosen, self._number - 1))

    def watch_chosen(self, _: int) -> None:
        """Scroll the chosen line into view, and send `Chosen`."""
        row = Region(self.scroll_offset.x, self.chosen, 1, 1)
        self.scroll_to_region(row, animate=False, force=True)
        self.refresh()
        self.post_message(self.Chosen(self))

    def render_line(self, y: int) -> Strip:
        """Draw one row of the screen."""
        index = y + self.scroll_offset.y
        width = self.size.width
        if index >= self._number or self._draw is None:
            return Strip.blank(width, self.rich_style)
        line = self._draw(index, max(1, self.scrollable_content_region.width))
        style = self.rich_style
        if index == self.chosen and self.has_focus:
            style += Style(reverse=True)
        elif index == self.chosen:
            style += Style(bold=True)
        segments = [_styled(s, style) for s in line.render(self.app.console)]
        left = self.scroll_offset.x
        return Strip(segments).crop_extend(left, left + width, style)

    def on_resize(self) -> None:
        """Keep the choice in view."""
        row = Region(self.scroll_offset.x, self.chosen, 1, 1)
        self.scroll_to_region(row, animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        """Choose the clicked line; a click on the chosen line opens it."""
        index = event.y + self.scroll_offset.y
        if index == self.chosen:
            self.post_message(self.Clicked())
        elif index < self._number:
            self.chosen = index


def _styled(segment: Segment, style: Style) -> Segment:
    return Segment(segment.text, style + segment.style if segment.style else style)
