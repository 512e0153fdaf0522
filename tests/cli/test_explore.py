"""The explorer, by its keys; and by nothing that a file or a name says."""

from __future__ import annotations

import errno
import json
import math
import os

import greedy
import pytest
import torch
from explorer_pilot import explored
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from safetensors.torch import save

from bt_lightning.cli.explore.checkpoint_rows import checkpoint_rows, file_rows
from bt_lightning.cli.explore.file_preview import text_lines
from bt_lightning.cli.explore.fuzzy_match import letters_found, matching
from bt_lightning.cli.explore.sparkline import sparkline
from bt_lightning.cli.explore.table_rows import RowColumn, TableRows, shorten_middle
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.manage.checkpoint_kind import checkpoint_kind
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints

pytestmark = pytest.mark.matrix


def weights(value):
    return {
        "model.safetensors": save({"a.weight": torch.full((2, 3), value), "b": torch.ones(1)}),
        "optimizer.safetensors": save({"optimizer_states.0.state.0.exp_avg": torch.ones(9)}),
        "trainer.json": json.dumps({"epoch": value}).encode(),
        "deep/er/notes.md": b"# Title\n\x1b[31mred\n",
        "weights.ckpt": b"no zip",
    }


@pytest.fixture
def source(tmp_path, make):
    for step in (3, 20, 100):
        make(tmp_path / "ck", f"checkpoint-{step}", step, files=weights(float(step)))
    make(tmp_path / "ck", "best", 50, files=weights(50.0))
    return DirectoryCheckpoints(tmp_path / "ck")


def first_words(rows):
    return [line.replace("●", "").split()[0] for line in rows]


NEWEST_FIRST = ["checkpoint-100", "best", "checkpoint-20", "checkpoint-3"]


def test_checkpoints_are_the_newest_first_filtered_by_names_and_sorted(source):
    async def steps(it):
        assert first_words(it.rows("checkpoints")) == NEWEST_FIRST
        assert "4 checkpoints" in it.text()
        await it.press("slash", "2", "0", "enter")
        assert first_words(it.rows("checkpoints")) == ["checkpoint-20"]
        assert "1 of 4" in it.text()
        await it.press("escape", "slash", *"full")  # the type of all, and no name
        assert it.rows("checkpoints") == []
        await it.press("escape")
        assert len(it.rows("checkpoints")) == 4
        await it.press("s")
        assert first_words(it.rows("checkpoints"))[0] == "checkpoint-3"
        assert "by step" in it.text()
        await it.press("S")
        assert first_words(it.rows("checkpoints"))[0] == "checkpoint-100"
        await it.press("s")
        assert first_words(it.rows("checkpoints"))[0] == "best"

    explored(source, steps)


def test_panes_follow_what_is_chosen(source):
    async def steps(it):
        assert "7 parameters" in it.text()
        assert "9 values" in it.text()  # the optimizer's, apart
        await it.press("enter")
        assert it.front() == "files"
        assert first_words(it.rows("files"))[:2] == ["▾", "▾"]
        await it.press("end", "up", "up", "up")
        assert "a.weight" in it.text()
        assert any("F32" in row and "2 x 3" in row for row in it.rows("content"))
        await it.press("enter")
        assert it.front() == "content"
        await it.press("left", "down", "down")
        assert '  "epoch": 100.0' in it.rows("content")
        await it.press("end")
        await it.shows("error: ")
        await it.press("home", "down", "down")
        assert not any("\x1b" in row for row in it.rows("content"))
        assert any("red" in row for row in it.rows("content"))
        await it.press("home", "enter")
        assert len(it.rows("files")) == 5  # the folder is closed
        await it.press("enter")
        assert len(it.rows("files")) == 7
        await it.press("escape", "down")
        assert it.front() == "checkpoints"
        assert "best" in it.text()
        await it.press("tab", "tab", "tab", "shift+tab")
        assert it.front() == "content"

    explored(source, steps, size=(160, 40))


def test_an_unexpected_error_ends_without_the_values_of_variables(source, monkeypatch):
    async def steps(it):
        said = []
        monkeypatch.setattr(it.app, "_close_messages_no_wait", lambda: None)
        monkeypatch.setattr(it.app, "_exit_renderables", said)
        secret = "hunter2".upper()  # not as in this line, which is shown
        try:
            it.app.no_such_thing = 1 // (len(secret) - 7)
        except ZeroDivisionError:
            it.app._fatal_error()
        text = "".join(segment.text for each in said for segment in each.segments)
        assert "ZeroDivisionError" in text
        assert "test_explore.py" in text
        assert secret not in text

    explored(source, steps)


def test_narrow_terminals_show_one_pane(source):
    async def steps(it):
        assert "Checkpoints" in it.text()
        assert "2 Files" not in it.text()
        await it.press("enter")
        assert "2 Files" in it.text()
        assert "1 Checkpoints" not in it.text()
        assert max(map(len, it.text().splitlines())) <= 60

    explored(source, steps, size=(60, 20))


def test_a_pane_alone(source):
    async def steps(it):
        assert "2 Files" in it.text()
        await it.press("z")
        assert "2 Files" not in it.text()
        await it.press("z")
        assert "2 Files" in it.text()

    explored(source, steps)


def test_another_metric_and_the_manifest(source, make, tmp_path):
    make(tmp_path / "ck", "more", 200, metrics={"acc": 0.5, "loss": 2.0}, files=weights(1.0))

    async def steps(it):
        assert "acc" in it.text()
        await it.press("m")
        assert "loss" in it.rows("checkpoints")[0] or "2" in it.rows("checkpoints")[0]
        await it.press("o")
        assert any('"id": "more"' in row for row in it.rows("content"))

    explored(source, steps)


def test_a_checkpoint_to_begin_in_and_an_empty_directory(source, tmp_path):
    async def steps(it):
        assert it.front() == "files"
        assert it.main.item.name == "checkpoint-3"

    explored(source, steps, "checkpoint-3")
    with pytest.raises(CheckpointNotFoundError):
        explored(source, steps, "checkpoint-4")
    (tmp_path / "empty").mkdir()

    async def nothing(it):
        assert "No checkpoints" in it.status()
        await it.press("enter", "d", "o", "space", "p", "D", "g", "v", "c", "e", "s", "m", "right")

    explored(DirectoryCheckpoints(tmp_path / "empty"), nothing)


def test_what_is_saved_meanwhile_appears_and_the_cursor_stays(source, make, tmp_path):
    async def steps(it):
        await it.press("down", "down", "space", "up")
        assert it.main.item.name == "checkpoint-20"
        make(tmp_path / "ck", "checkpoint-500", 500, files=weights(5.0))
        await it.until(lambda: len(it.rows("checkpoints")) == 5)
        assert it.main.item.name == "checkpoint-20"
        assert it.main.marked == {"checkpoint-20"}
        assert first_words(it.rows("checkpoints"))[0] == "checkpoint-500"

    explored(source, steps, is_live=True)


def test_many_checkpoints_are_drawn_as_they_are_seen(source, monkeypatch):
    drawn = []
    real = TableRows.draw
    monkeypatch.setattr(TableRows, "draw", lambda *args: drawn.append(args) or real(*args))
    items = source.items() * 500
    monkeypatch.setattr(DirectoryCheckpoints, "items", lambda _: items)

    async def steps(it):
        assert "2,000 checkpoints" in it.text()
        await it.press("end")
        assert it.main.pane("checkpoints").lines.chosen == 1_999
        await it.press("home", "pagedown", "slash", *"20")
        assert len(it.main.pane("checkpoints")._shown) == 500
        assert len(drawn) < 2_000

    explored(source, steps)


def test_names_that_are_markup_are_names(tmp_path, make):
    names = ("[red]x[/red]", "[b", "a[/]", "[link=x]", "größe-💥-中文中文")
    for step, name in enumerate(names, 1):
        files = {"[bold]f[.json": b"[1]", "model.safetensors": save({"[i]t[/i]": torch.ones(1)})}
        make(tmp_path / "ck", name, step, files=files, metrics={"[u]loss[/u]": 1.0 / step})

    async def steps(it):
        for name in names:
            assert name in it.text()
            await it.press("end", *["up"] * names.index(name), "enter", "home")
            assert "[bold]f[.json" in it.text()
            await it.press("down", "enter")
            assert "[i]t[/i]" in it.text()
            await it.press("1")
        assert "[u]loss[/u]" in it.text()
        for key in ("p", "D", "g", "c", "e", "a"):
            await it.press(key)
            await it.until(lambda: len(it.app.screen_stack) > 2)
            await it.press("escape")
            await it.until(lambda: len(it.app.screen_stack) == 2)

    explored(DirectoryCheckpoints(tmp_path / "ck"), steps, size=(160, 40))


@given(st.text(max_size=12), st.text(max_size=30))
def test_letters_are_found_in_their_order(query, text):
    places = letters_found(query, text)
    wanted = [c for c in query.lower() if c != " "]
    if places is not None and query.lower() not in text.lower():
        assert list(places) == sorted(places)
        assert [text.lower()[place] for place in places] == wanted


def test_letters_together_go_before_letters_in_order_and_rows_keep_theirs():
    names = ["checkpoint-120", "checkpoint-20", "c-h-k-2-0"]
    assert matching("20", names) == [0, 1]
    assert matching("chk", names) == [0, 1, 2]
    assert matching(" ", names) == [0, 1, 2]
    assert matching("xyz", names) == []


@given(st.lists(st.floats(), max_size=60), st.integers(-1, 40))
def test_a_sparkline_of_any_values_fits(values, width):
    line = sparkline(values, width)
    assert len(line) <= max(0, width)
    assert len(line) == 0 or any(math.isfinite(value) for value in values)


@given(st.text(max_size=40), st.integers(0, 50))
def test_a_name_without_its_middle_fits(text, width):
    assert cell_len(shorten_middle(text, width)) <= max(width, 0)
    if cell_len(text) <= width:
        assert shorten_middle(text, width) == text


@pytest.mark.parametrize("width", [40, 56, 96])
def test_dtype_shape_and_size_stay_in_any_width(width):
    name = "model.layers.17.self_attention.query_key_value.lora_A.default.weight"
    columns = (
        RowColumn(title="Tensor"),
        RowColumn(title="Dtype"),
        RowColumn(title="Shape"),
        RowColumn(title="Values", rank=2),
        RowColumn(title="Size"),
    )
    table = TableRows(columns, [(name, "BF16", "4096 x 4096", "16,777,216", "33.55 MB")], [name])
    line = table.draw(0, width, "").plain
    assert cell_len(line) <= width
    assert all(cell in line for cell in ("BF16", "4096 x 4096", "33.55 MB"))
    assert line.startswith("mod")
    assert "weight" in line.split("  ")[0]


def test_checkpoints_without_the_metric_are_last_in_both_orders(source, make, tmp_path):
    make(tmp_path / "ck", "bare", 7, metrics={}, files=weights(7.0))
    make(tmp_path / "ck", "nan", 8, metrics={"val_loss": math.nan}, files=weights(8.0))

    async def steps(it):
        it.main.pane("checkpoints").sort("val_loss")
        for _ in range(2):
            assert set(first_words(it.rows("checkpoints"))[-2:]) == {"bare", "nan"}
            await it.press("S")

    explored(source, steps)


def test_large_folders_are_closed_at_first(tmp_path, make):
    files = {f"ranks/{n:05}.json": b"{}" for n in range(100)}
    item = make(tmp_path / "ck", "c", 1, files=files)
    rows = file_rows(item.manifest, (), ())
    assert [rows.row_id(index) for index in range(len(rows))] == ["ranks/"]
    assert len(file_rows(item.manifest, ("ranks/",), ())) == 101


@given(st.binary(max_size=200), st.sampled_from(["a.json", "a.py", "a", "a.md", "b.yaml"]))
def test_no_file_reaches_the_terminal_raw(data, path):
    lines = text_lines(path, data)
    assert all(isinstance(line, Text) and line.plain.isprintable() for line in lines)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 400 + b"0," * 400_000 + b"0" + b"]" * 400,
        b"[" + b"[]," * 330_000 + b"0]",
        b"\n" * 999_999,
        b"[" * 999_999,
    ],
    ids=["deep", "wide", "lines", "brackets"],
)
def test_a_text_is_shown_in_few_lines_however_few_bytes_make_many(data):
    lines = text_lines("config.json", data)
    assert len(lines) <= 50_001
    assert sum(line.cell_len for line in lines) <= 4_000_000


def test_a_file_that_is_too_large_to_look_into_says_so(tmp_path, make):
    files = {"a.ckpt": greedy.zipped(greedy.PICKLES["doubled"])}
    make(tmp_path / "ck", "checkpoint-1", 1, files=files)

    async def steps(it):
        await it.press("enter", "enter")
        assert any("too large to look into" in row for row in it.rows("content"))

    explored(DirectoryCheckpoints(tmp_path / "ck"), steps)


def test_a_disk_that_refuses_is_said_and_ends_no_screen(source, monkeypatch):
    """A stale handle of NFS, a folder of somebody else: the explorer stays, and its list too."""
    refused = OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def refuse(*_):
        raise refused

    async def steps(it):
        monkeypatch.setattr(DirectoryCheckpoints, "reader", refuse)
        monkeypatch.setattr(DirectoryCheckpoints, "url", refuse)
        await it.press("down", "enter", "end")
        assert any("Stale" in row for row in it.rows("content"))
        for key in ("u", "d"):
            await it.press(key)
            await it.shows("Stale")
            await it.press("escape")
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryCheckpoints, "items", refuse)
            await it.press("r")
            await it.says("Stale")
            assert len(it.rows("checkpoints")) == 4
        await it.press("r")
        await it.until(lambda: not it.status())

    explored(source, steps)


def test_a_list_in_another_order_and_by_a_metric_that_none_has(source):
    async def by_step(it):
        assert first_words(it.rows("checkpoints"))[0] == "checkpoint-3"

    async def by_nothing(it):
        assert "no checkpoint has the metric 'nope'" in it.status()

    explored(source, by_step, order=("step", "asc"))
    explored(source, by_nothing, order=("metric:nope", "asc"))


def test_signs_say_what_is_protected_and_what_moved(source):
    items = source.items()
    kinds = checkpoint_kind([(source, item) for item in items])
    rows = checkpoint_rows(items, kinds, "val_loss", {"best"})
    drawn = [rows.draw(index, 120, "").plain for index in range(4)]
    assert "↓" in drawn[0]
    assert drawn[1].startswith("● best")
