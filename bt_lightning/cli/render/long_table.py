"""Print a table of thousands of rows: rich draws a sample, and the others are made as those are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table

LONG: Final = 500
"""Rows from which on a table is drawn so: rich takes a millisecond for each."""
_PIECE: Final = 1000
_BEFORE: Final = 3
"""Lines of a table before its first row."""


def print_long(
    console: Console,
    draw: Callable[[Sequence[Sequence[str]]], Table],
    rows: Sequence[Sequence[str]],
    right: Sequence[bool],
) -> bool:
    """Print the table `draw(rows)`; False, with nothing printed, if it has rows of several lines.

    `rows` have the text of each cell, `right` says which columns are aligned to the right.
    """
    from rich.cells import cell_len

    def size(text: str) -> int:
        return len(text) if text.isascii() else cell_len(text)

    columns = range(len(right))
    sizes = [[size(text) for text in row] for row in rows]
    widest = set()
    for one in columns:
        column = [own[one] for own in sizes]
        widest.add(column.index(max(column)))
    sample = [rows[at] for at in sorted(widest)]
    with console.capture() as captured:
        console.print(draw(sample))
    lines = captured.get().splitlines()
    if len(lines) != _BEFORE + len(sample) + 1:
        return False
    bar = lines[_BEFORE][:1]
    titles = [size(str(column.header)) for column in draw(()).columns]
    widths = [max(titles[one], *(own[one] for own in sizes)) for one in columns]

    def line(at: int) -> str:
        cells = []
        for one, text in enumerate(rows[at]):
            gap = " " * (widths[one] - sizes[at][one])
            cells.append(f"{gap}{text}" if right[one] else f"{text}{gap}")
        return f"{bar} {f' {bar} '.join(cells)} {bar}"

    if [line(at) for at in sorted(widest)] != lines[_BEFORE:-1]:
        return False
    console.file.write("\n".join(lines[:_BEFORE]) + "\n")
    for start in range(0, len(rows), _PIECE):
        made = [line(at) for at in range(start, min(start + _PIECE, len(rows)))]
        console.file.write("\n".join(made) + "\n")
    console.file.write(lines[-1] + "\n")
    return True
