"""The keys of the explorer: what they do, the line of hints, and the page of help."""

from __future__ import annotations

from typing import Final

from rich.text import Text
from textual.binding import Binding, BindingType

ACTIONS: Final = (
    ("p", "protect", "protect, or no longer"),
    ("D", "delete", "delete; says what it frees"),
    ("g", "download", "download to a directory"),
    ("v", "verify", "verify: read every byte"),
    ("c", "copy", "copy to another store or job"),
    ("e", "export", "export as .ckpt, Hugging Face or DCP"),
    ("d", "diff", "compare with the marked, or the one before"),
    ("u", "url", "URL of the chosen file"),
    ("J", "jobs", "another job or project"),
)
"""Key, name and what it does, of what `a` lists."""

MAIN_KEYS: Final[list[BindingType]] = [
    Binding("1", "pane('checkpoints')"),
    Binding("2", "pane('files')"),
    Binding("3", "pane('content')"),
    Binding("tab", "next_pane(1)"),
    Binding("shift+tab", "next_pane(-1)"),
    Binding("enter,right,l", "open"),
    Binding("escape,left,h", "back"),
    Binding("slash", "filter"),
    Binding("s", "sort(False)"),
    Binding("S", "sort(True)"),
    Binding("m", "metric"),
    Binding("space", "mark"),
    Binding("z", "zoom"),
    Binding("r", "refresh"),
    Binding("o", "manifest"),
    Binding("ctrl+x", "cancel_task", priority=True),
    *(Binding(key, f"run('{name}')") for key, name, _ in ACTIONS),
    Binding("a", "run('actions')"),
    Binding("question_mark", "run('help')"),
    Binding("q", "run('quit')"),
]

_HINTS: Final = {
    "checkpoints": (
        *(("enter", "files"), ("/", "filter"), ("s", "sort"), ("m", "metric"), ("space", "mark")),
        *(("d", "diff"), ("a", "actions"), ("J", "jobs"), ("z", "zoom"), ("q", "quit")),
    ),
    "files": (
        *(("enter", "open"), ("esc", "back"), ("/", "filter"), ("u", "URL"), ("a", "actions")),
        *(("z", "zoom"), ("q", "quit")),
    ),
    "content": (
        *(("esc", "back"), ("/", "filter"), ("s", "sort"), ("<", "left"), (">", "right")),
        *(("z", "zoom"), ("q", "quit")),
    ),
}


def hint_text(pane: str, width: int) -> Text:
    """The keys of a pane that fit into a line; `?` always does."""
    line = Text(no_wrap=True)
    last = "? keys"
    for key, does in _HINTS.get(pane, ()):
        if line.cell_len + len(key) + len(does) + 3 + len(last) > width:
            break
        line.append(key, style="bold").append(f" {does}  ")
    return line.append("?", style="bold").append(" keys")


HELP: Final = (
    "1 2 3 tab   a pane; enter opens, esc goes back",
    "up down     j k, page up, page down, home, end",
    "/           filter by name; letters in order do",
    "s S         sort by the next column; reversed",
    "m           the next metric",
    "space       mark: actions take all marked ones",
    "o           the manifest",
    "z           the pane alone, in the whole width",
    "< >         what is beyond the edge",
    "r           list again; it is live as well",
    "",
    *(f"{key:<11} {does}" for key, _, does in ACTIONS),
    "a           a list of these",
    "ctrl+x      cancel what is under way",
    "q ctrl+c    quit",
    "",
    "P protected  S syncing: only on this disk so far",
    "U not committed",
    "↑ ↓ = the metric, after the checkpoint before",
)
