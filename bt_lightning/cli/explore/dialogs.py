"""Dialogs of the explorer: a message, a question, fields to fill in, a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from bt_lightning.cli.explore.long_list import Lines
from bt_lightning.cli.render.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult


def _text(lines: Sequence[str]) -> Text:
    return Text("\n".join(printable(line, keep="\n") for line in lines))


class MessageDialog(ModalScreen[None]):
    """Says something until a key is pressed."""

    BINDINGS: ClassVar = [
        Binding("escape,enter,q,left,question_mark", "dismiss(None)", priority=True)
    ]

    def __init__(self, title: str, lines: Sequence[str], *, is_error: bool = False) -> None:
        super().__init__()
        self._title, self._lines, self._is_error = title, lines, is_error

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        with Vertical(classes="dialog error" if self._is_error else "dialog"):
            yield Static(Text(printable(self._title), style="bold"))
            with VerticalScroll():
                yield Static(_text(self._lines), classes="said")
            yield Static("esc, enter: back", classes="keys")

    def on_mount(self) -> None:
        """Let the arrows scroll."""
        self.query_one(VerticalScroll).focus()


class ConfirmDialog(ModalScreen[bool]):
    """Asks before something is changed; with a word, it must be typed."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss(False)", priority=True)]

    def __init__(self, title: str, lines: Sequence[str], word: str | None = None) -> None:
        super().__init__()
        self._title, self._lines, self._word = title, lines, word

    def compose(self) -> ComposeResult:
        """Question, what happens, keys."""
        with Vertical(classes="dialog"):
            yield Static(Text(printable(self._title), style="bold"))
            with VerticalScroll():
                yield Static(_text(self._lines), classes="said")
            if self._word is None:
                yield Static("y, enter: yes   n, esc: no", classes="keys")
            else:
                yield Input(placeholder=f"type {self._word}", compact=True)
                yield Static(f"{self._word}, enter: go on   esc: nothing is done", classes="keys")

    def on_mount(self) -> None:
        """Focus what is to be typed."""
        if self._word is not None:
            self.query_one(Input).focus()

    def on_key(self, event: object) -> None:
        """Take the answer where no word is asked for."""
        key = getattr(event, "key", "")
        if self._word is None and key in {"y", "enter"}:
            self.dismiss(result=True)
        elif self._word is None and key in {"n", "q"}:
            self.dismiss(result=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Only the word itself goes on."""
        self.dismiss(result=event.value.strip() == self._word)


class FormDialog(ModalScreen[list[str] | None]):
    """Fields to fill in; Enter in the last one goes on. None: given up."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss(None)", priority=True)]

    def __init__(self, title: str, lines: Sequence[str], fields: Sequence[tuple[str, str]]) -> None:
        """`fields` are labels, each with its value to begin with."""
        super().__init__()
        self._title, self._lines, self._fields = title, lines, fields

    def compose(self) -> ComposeResult:
        """Title, what happens, fields, keys."""
        with Vertical(classes="dialog"):
            yield Static(Text(printable(self._title), style="bold"))
            with VerticalScroll():
                yield Static(_text(self._lines), classes="said")
            for label, value in self._fields:
                yield Static(Text(printable(label)), classes="label")
                yield Input(value, compact=True)
            go_on = "enter: go on" if len(self._fields) == 1 else "enter: next, at last go on"
            yield Static(f"{go_on}   esc: nothing is done", classes="keys")

    def on_mount(self) -> None:
        """Focus the first field."""
        self.query(Input).first().focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the next field; of the last one, hand over what was typed."""
        inputs = list(self.query(Input))
        at = inputs.index(event.input)
        if at + 1 < len(inputs):
            inputs[at + 1].focus()
        else:
            self.dismiss([one.value.strip() for one in inputs])


class ChoiceDialog(ModalScreen[int | None]):
    """One of several lines; a key before a line chooses it. None: given up."""

    BINDINGS: ClassVar = [
        Binding("escape,q,left", "dismiss(None)", priority=True),
        Binding("enter,right", "take", priority=True),
    ]

    def __init__(
        self, title: str, options: Sequence[tuple[str, str]], lines: Sequence[str] = ()
    ) -> None:
        """`options` are keys, each with what it does; a key may be empty. `lines` are above."""
        super().__init__()
        self._title, self._options, self._said = title, options, lines

    def compose(self) -> ComposeResult:
        """Title, options, keys."""
        with Vertical(classes="dialog choice"):
            yield Static(Text(printable(self._title), style="bold"))
            if self._said:
                with VerticalScroll(can_focus=False):
                    yield Static(_text([*self._said, ""]), classes="said")
            yield Lines()
            yield Static("enter: take it   esc: back", classes="keys")

    def on_mount(self) -> None:
        """List the options."""
        lines, wide = self.query_one(Lines), max(len(key) for key, _ in self._options)
        lines.styles.height = len(self._options)

        def draw(index: int, _: int) -> Text:
            key, does = self._options[index]
            return Text.assemble(
                (f"{key:<{wide}}  " if wide else "", "bold"), printable(does), no_wrap=True
            )

        lines.show(len(self._options), draw, 0)
        lines.focus()

    def on_key(self, event: object) -> None:
        """Take the option of a key."""
        key = getattr(event, "character", None)
        for index, (own, _) in enumerate(self._options):
            if own and own == key:
                self.dismiss(index)
                return

    def on_lines_clicked(self) -> None:
        """Take the clicked option."""
        self.action_take()

    def action_take(self) -> None:
        """Take the chosen option."""
        self.dismiss(self.query_one(Lines).chosen)
