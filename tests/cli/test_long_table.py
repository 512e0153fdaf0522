"""A long table has the text that rich would give it."""

from __future__ import annotations

import pytest

from bt_lightning.cli.render import table_csv_json
from bt_lightning.cli.render.table_csv_json import Column, table

COLUMNS = (
    Column("Name", lambda row: row[0]),
    Column("Number", lambda row: row[1], right=True, rank=1),
    Column("", lambda row: row[2], rank=2, hide_empty=True),
)


def shown(capsys, rows, *, by_rich, monkeypatch):
    monkeypatch.setattr(table_csv_json, "LONG", len(rows) + 1 if by_rich else 1)
    table("Title", COLUMNS, rows)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "1", ""), ("abc", "22", "")],
        [("a│b", "1", "x"), ("|", "22", "│ │")],
        [("日本", "1", "é"), ("🙂 x", "22222222222", "e\u0301"), ("a", "", "")],
        [("[bold]x[/bold]", "1", " leading"), ("trailing ", "2", "")],
        [("x" * 2000, "1", "")],
        [("two\nlines", "1", ""), ("b", "2", "")],
        [("", "", "")],
        [(f"checkpoint-{n}", str(n), "m" * (n % 7)) for n in range(600)],
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_the_text_is_that_of_rich(rows, terminal, capsys, monkeypatch):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "60")
    wanted = shown(capsys, rows, by_rich=True, monkeypatch=monkeypatch)
    assert shown(capsys, rows, by_rich=False, monkeypatch=monkeypatch) == wanted
    assert "Name" in wanted


def test_rich_draws_a_sample_only(capsys, monkeypatch):
    drawn = []
    from rich.table import Table

    add_row = Table.add_row
    monkeypatch.setattr(Table, "add_row", lambda *cells: drawn.append(add_row(*cells)))
    table("Title", COLUMNS, [(f"checkpoint-{n}", str(n), "") for n in range(5000)])
    assert len(drawn) <= 3
    assert capsys.readouterr().out.count("checkpoint-") == 5000
