"""Output of any list as a table for people, as CSV, or as JSON."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import click

from bt_lightning.cli.render.long_table import LONG, print_long
from bt_lightning.cli.render.text import printable
from bt_lightning.cli.target_options import CHOSEN_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MARGIN, _PER_COLUMN = 1, 3
_MAX_DEPTH = 64
_PIECES = 256
_TEXT = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table and of the CSV."""

    title: str
    cell: Callable[[Any], str]
    """Text of the cell for a row."""
    right: bool = False
    rank: int = 0
    """Columns of higher rank are dropped first on a narrow terminal; rank 0 never is."""
    hide_empty: bool = False
    """Dropped from the table if all its cells are empty."""


def table(
    title: str, columns: Sequence[Column], rows: Sequence[object], max_rows: int | None = None
) -> None:
    """Print a table; columns that do not fit are dropped by rank, and named below.

    Rows beyond the first `max_rows` are only counted.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    texts = [[printable(column.cell(row)) for column in columns] for row in rows[:max_rows]]
    shown, hidden = _fitting_columns(columns, texts, console.width if console.is_terminal else None)

    def draw(rows: Sequence[Sequence[str]]) -> Table:
        drawn = Table(box=box.ROUNDED)
        for index in shown:
            justify: Literal["left", "right"] = "right" if columns[index].right else "left"
            drawn.add_column(columns[index].title, justify=justify, no_wrap=False)
        for cells in rows:
            drawn.add_row(*[Text(cell, overflow="fold") for cell in cells])
        return drawn

    cells = [[row[index] for index in shown] for row in texts]
    right = [columns[index].right for index in shown]
    if not console.is_terminal:
        console.width = 1000  # a pipe or a file gets whole lines
    console.print(Text(printable(title), style="bold"))
    if len(cells) < LONG or not print_long(console, draw, cells, right):
        console.print(draw(cells))
    if len(rows) > len(texts):
        click.echo(f"{len(texts):,} of {len(rows):,} are shown: -o csv or -o json has all of them")
    if hidden:
        names = ", ".join(columns[index].title for index in hidden)
        click.secho(f"not shown in this width: {names}", dim=True)


def as_csv(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print CSV with a header to stdout; cells are made harmless to terminals and spreadsheets."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows([_safe_cell(cell) for cell in row] for row in rows)


def as_json(payload: object) -> None:
    """Print JSON, indented by 2, to stdout; ASCII only, so that any locale can print it.

    Numbers that are not finite become text, as in `json_number`; values nested deeper than 64
    levels become `...`. With `-o jsonl` each element of a list is a line of its own, and with
    `-o none` nothing is printed.
    """
    context = click.get_current_context(silent=True)
    chosen = None if context is None else context.meta.get(CHOSEN_FORMAT)
    if chosen == "none":
        return
    if chosen == "jsonl":
        for row in _rows_of(payload):
            click.echo(json.dumps(_json_value(row, _MAX_DEPTH), allow_nan=False))
        return
    pieces = json_pieces(payload)
    while text := "".join(itertools.islice(pieces, _PIECES)):
        click.echo(text, nl=False)  # in pieces: the whole text may take more memory than the list
    click.echo()


def json_pieces(payload: object) -> Iterator[str]:
    """The text that `as_json` prints, in pieces.

    The encoder of `json` that is written in C does not indent, and the other one takes four times
    as long as this for the list of a large store.
    """
    if isinstance(payload, dict) and payload:
        before = "{\n  "
        for key, value in payload.items():
            yield f"{before}{_key(key)}: "
            if isinstance(value, list | tuple) and value:
                between = "[\n    "
                for row in value:
                    yield between + _indented(row, "\n    ", _MAX_DEPTH - 2)
                    between = ",\n    "
                yield "\n  ]"
            else:
                yield _indented(value, "\n  ", _MAX_DEPTH - 1)
            before = ",\n  "
        yield "\n}"
    else:
        yield _indented(payload, "\n", _MAX_DEPTH)


def _indented(value: object, end: str, depth: int) -> str:
    """`value` as JSON; `end` is the line feed and indentation before its closing bracket."""
    if isinstance(value, str):
        return _TEXT(value)
    if not isinstance(value, dict | list | tuple):
        return _scalar(value)
    first, last = "{}" if isinstance(value, dict) else "[]"
    if not depth or not value:
        return f"{first}{last}" if depth else '"..."'
    line = f"{end}  "
    inner = depth - 1
    if isinstance(value, dict):
        texts = [
            f"{_key(key)}: {_TEXT(one) if type(one) is str else _indented(one, line, inner)}"
            for key, one in value.items()
        ]
    else:
        texts = [_indented(one, line, inner) for one in value]
    return f"{first}{line}{f',{line}'.join(texts)}{end}{last}"


def _scalar(value: object) -> str:
    """A value that is neither text nor has others in it; the frequent ones without `json`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)
    return json.dumps(json_number(value) if isinstance(value, float) else value)


@lru_cache(1024, typed=True)
def _key(key: object) -> str:
    return _TEXT(key if isinstance(key, str) else json.dumps(key))


def _rows_of(payload: object) -> Sequence[object]:
    """The elements of what is a list with facts about it (`total_...`), else the payload alone."""
    if isinstance(payload, dict) and any(str(name).startswith("total_") for name in payload):
        lists = [value for value in payload.values() if isinstance(value, list)]
        if len(lists) == 1:
            return lists[0]
    return [payload]


def _json_value(value: object, depth: int) -> object:
    if isinstance(value, float):
        return json_number(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if not depth:
        return "..."
    if isinstance(value, dict):
        return {key: _json_value(inner, depth - 1) for key, inner in value.items()}
    return [_json_value(inner, depth - 1) for inner in value]


def json_number(value: float) -> float | str:
    """A finite number as it is, else one of the texts `NaN`, `Infinity`, `-Infinity`."""
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return "NaN"
    if value in {float("inf"), float("-inf")}:
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _safe_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text[:1] in {"=", "+", "@"} else text


def _fitting_columns(
    columns: Sequence[Column], texts: list[list[str]], width: int | None
) -> tuple[list[int], list[int]]:
    """Indices of the columns that fit into `width`, and of those that do not."""
    shown = [
        index
        for index, column in enumerate(columns)
        if not column.hide_empty or any(cells[index] for cells in texts)
    ]
    hidden: list[int] = []
    if width is None:
        return shown, hidden
    widths = [
        max([len(column.title), *(len(cells[index]) for cells in texts)])
        for index, column in enumerate(columns)
    ]
    while sum(widths[i] + _PER_COLUMN for i in shown) + _MARGIN > width:
        droppable = [index for index in shown if columns[index].rank]
        if not droppable:
            break
        dropped = max(droppable, key=lambda index: columns[index].rank)
        shown.remove(dropped)
        hidden.append(dropped)
    return shown, sorted(hidden)
