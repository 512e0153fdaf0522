"""A list widget of any length that draws only the visible lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.style import Style
    from rich.text import Text
    from textual import events


class Lines(ScrollView, can_focus=False):
    """Lines of text, one of which is chosen; the screen moves the choice."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--chosen"}
    DEFAULT_CSS = """
    Lines { height: 1fr; }
    Lines > .lines--chosen { background: $primary 70%; color: $text; text-style: bold; }
    """
    chosen: reactive[int] = reactive(0)

    class Chosen(Message):
        """Sent when another line is chosen."""

        def __init__(self, index: int | None) -> None:
            super().__init__()
            self.index = index

    class Clicked(Message):
        """Sent when the chosen line is clicked."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: Sequence[Text] = ()

    def show(self, lines: Sequence[Text], chosen: int = 0) -> None:
        """Replace the lines."""
        self._lines = lines
        width = max((line.cell_len for line in lines[:2000]), default=0)
        self.virtual_size = Size(width, len(lines))
        before = self.chosen
        self.chosen = self.validate_chosen(chosen)
        if self.chosen == before:
            self.watch_chosen(before)
        self.refresh()

    def move(self, by: int) -> None:
        """Move the choice by `by` lines."""
        self.chosen += by

    def sideways(self, by: int) -> None:
        """Scroll by half of the width, to the right (1) or to the left (-1)."""
        self.scroll_relative(x=by * max(1, self.size.width // 2), animate=False)

    def validate_chosen(self, chosen: int) -> int:
        """Keep the choice within the lines."""
        return max(0, min(chosen, len(self._lines) - 1))

    def watch_chosen(self, _: int) -> None:
        """Scroll the chosen line into view, and send `Chosen`."""
        row = Region(self.scroll_offset.x, self.chosen, 1, 1)
        self.scroll_to_region(row, animate=False, force=True)
        self.refresh()
        self.post_message(self.Chosen(self.chosen if self._lines else None))

    def render_line(self, y: int) -> Strip:
        """Draw one row of the screen."""
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(self.size.width, self.rich_style)
        line, style = self._lines[index], self.rich_style
        if index == self.chosen:
            style += self.get_component_rich_style("lines--chosen", partial=True)
        segments = [_styled(s, style) for s in line.render(self.app.console)]
        strip = Strip(segments)
        left = self.scroll_offset.x
        return strip.crop_extend(left, left + self.size.width, style)

    def on_click(self, event: events.Click) -> None:
        """Choose the clicked line; a click on the chosen line opens it."""
        index = event.y + self.scroll_offset.y
        if index == self.chosen:
            self.post_message(self.Clicked())
        elif index < len(self._lines):
            self.chosen = index


def _styled(segment: Segment, style: Style) -> Segment:
    return Segment(segment.text, style + segment.style if segment.style else style)
