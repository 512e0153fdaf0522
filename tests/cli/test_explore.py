"""The explorer, by its keys; and by nothing that a file or a name says."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os

import greedy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from safetensors.torch import save
from textual.widgets import Input, Static

from bt_lightning.cli.explore import view_text
from bt_lightning.cli.explore.explorer import Explorer
from bt_lightning.cli.explore.file_preview import text_lines
from bt_lightning.cli.explore.fuzzy_match import best_matches, fuzzy
from bt_lightning.cli.explore.long_list import Lines
from bt_lightning.cli.explore.screen_base import PageScreen
from bt_lightning.cli.explore.screens import FilesScreen, LinesScreen, PickScreen
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints


def weights(value):
    return {
        "model.safetensors": save({"a.weight": torch.full((2, 3), value), "b": torch.ones(1)}),
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


def explored(source, steps, name=None):
    """Run the explorer, and `steps` with it: a coroutine of the app and its pilot."""

    async def run():
        app = Explorer(source, name)
        async with app.run_test(size=(100, 24)) as pilot:
            await settled(pilot)
            await steps(app, pilot)

    asyncio.run(run())


async def settled(pilot):
    for _ in range(3):  # a key opens a screen, that begins to read, and shows what it read
        await pilot.pause()
        await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def press(pilot, *keys):
    await pilot.press(*keys)
    await settled(pilot)


def seen(app):
    """What the list of the screen says."""
    lines = app.screen.query_one(Lines)
    return [line.plain for line in lines._lines[0 : len(lines._lines)]]


def foot(app):
    return str(app.screen.query_one("#foot", Static).render())


def test_the_list_is_the_newest_first_and_typing_filters_it(source):
    async def steps(app, pilot):
        assert isinstance(app.screen, PickScreen)
        assert [line.split()[0] for line in seen(app)] == [
            "checkpoint-100", "best", "checkpoint-20", "checkpoint-3",
        ]  # fmt: skip
        assert "val_loss" in foot(app)
        await press(pilot, "b", "s")
        assert seen(app)[0].startswith("best")
        await press(pilot, "enter")
        assert isinstance(app.screen, FilesScreen)
        await press(pilot, "left")
        await press(pilot, "escape")
        assert len(seen(app)) == 4
        await press(pilot, "left")
        assert isinstance(app.screen, PickScreen)  # the first screen stays

    explored(source, steps)


def test_files_folders_tensors_and_texts(source):
    async def steps(app, pilot):
        await press(pilot, "enter")
        assert [line.split()[0] for line in seen(app)] == [
            "..", "deep/", "model.safetensors", "trainer.json", "weights.ckpt",
        ]  # fmt: skip
        await press(pilot, "right")
        assert seen(app)[1].startswith("er/")
        await press(pilot, "right")
        await press(pilot, "enter")
        assert any("red" in line for line in seen(app))
        assert not any("\x1b" in line for line in seen(app))
        await press(pilot, "left", "left", "left")
        await press(pilot, "down", "enter")
        shown = seen(app)
        assert any(line.startswith("Tensors: 2  |  Parameters: 7") for line in shown)
        assert any("a.weight" in line and "F32" in line and "2 x 3" in line for line in shown)
        await press(pilot, "left")
        await press(pilot, "down", "enter")
        assert '  "epoch": 100.0' in seen(app)
        await press(pilot, "escape")
        await press(pilot, "down", "enter")
        assert isinstance(app.screen, LinesScreen)
        assert "no zip" in foot(app) or "zip file" in foot(app)

    explored(source, steps)


def test_the_url_of_a_file_and_the_keys(source):
    async def steps(app, pilot):
        for close in ("left", "escape", "q", "enter"):
            await press(pilot, "right")
            await press(pilot, "down", "right")
            assert isinstance(app.screen, PageScreen)
            assert "file://" in str(app.screen.query_one("#page", Static).render())
            await press(pilot, close)
            assert isinstance(app.screen, FilesScreen)
            await press(pilot, "left")
        await press(pilot, "question_mark")
        assert "compare" in str(app.screen.query_one("#page", Static).render())
        await press(pilot, "q")
        assert isinstance(app.screen, PickScreen)

    explored(source, steps)


def test_two_checkpoints_are_compared(source):
    async def steps(app, pilot):
        await press(pilot, "ctrl+d")
        assert "marked: checkpoint-100" in foot(app)
        await press(pilot, "down", "down", "ctrl+d")
        shown = seen(app)
        assert shown[0] == "1 changed"
        assert "a.weight" in shown[1]
        await press(pilot, "left")
        assert "marked" not in foot(app)

    explored(source, steps)


def test_the_manifest_and_another_metric(source, make, tmp_path):
    make(tmp_path / "ck", "more", 200, metrics={"acc": 0.5, "loss": 2.0}, files=weights(1.0))

    async def steps(app, pilot):
        assert foot(app).splitlines()[-1].startswith("acc")
        await press(pilot, "ctrl+n")
        assert foot(app).splitlines()[-1].startswith("loss")
        await press(pilot, "ctrl+o")
        assert any('"id": "more"' in line for line in seen(app))

    explored(source, steps)


def test_a_checkpoint_to_begin_in_and_an_empty_directory(source, tmp_path):
    async def steps(app, _):
        assert isinstance(app.screen, FilesScreen)

    explored(source, steps, "checkpoint-3")
    with pytest.raises(CheckpointNotFoundError):
        explored(source, steps, "checkpoint-4")
    (tmp_path / "empty").mkdir()

    async def nothing(app, pilot):
        assert "No checkpoints" in foot(app)
        await press(pilot, "enter", "ctrl+d", "ctrl+o", "right")

    explored(DirectoryCheckpoints(tmp_path / "empty"), nothing)


def test_a_list_of_many_draws_what_is_seen_only(source, monkeypatch):
    drawn = []
    real = view_text.marked
    monkeypatch.setattr(view_text, "marked", lambda *args: drawn.append(args) or real(*args))
    items = source.items() * 2500
    monkeypatch.setattr(DirectoryCheckpoints, "items", lambda _: items)

    async def steps(app, pilot):
        assert len(app.screen.query_one(Lines)._lines) == 10_000
        await press(pilot, "end")
        assert app.screen.query_one(Lines).chosen == 9_999
        await press(pilot, "home", "pagedown", *"20")
        assert app.screen.query_one(Input).value == "20"
        assert len(drawn) < 9_000

    explored(source, steps)


@given(st.text(max_size=12), st.text(max_size=30))
def test_letters_are_found_in_their_order(query, text):
    found = fuzzy(query, text)
    wanted = [c for c in query.lower() if c != " "]
    if found is not None and query.lower() not in text.lower():
        places = found[1]
        assert list(places) == sorted(places)
        assert [text.lower()[place] for place in places] == wanted


def test_the_best_fit_is_first_and_no_query_keeps_the_order():
    texts = ["checkpoint-120", "checkpoint-20", "c-h-k-2-0"]
    assert best_matches("20", texts) == [1, 0, 2]
    assert best_matches(" ", texts) == [0, 1, 2]
    assert best_matches("xyz", texts) == []


@given(st.lists(st.floats(), max_size=60), st.integers(-1, 40))
def test_a_sparkline_of_any_values_fits(values, width):
    line = view_text.sparkline(values, width)
    assert len(line) <= max(0, width)
    assert len(line) == 0 or any(math.isfinite(value) for value in values)


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

    async def steps(app, pilot):
        await press(pilot, "enter", "enter")
        assert isinstance(app.screen, LinesScreen)
        assert "too large to look into" in foot(app)

    explored(DirectoryCheckpoints(tmp_path / "ck"), steps)


def test_a_disk_that_refuses_is_said_and_ends_no_screen(source, monkeypatch):
    """A stale handle of NFS, a folder of somebody else: the explorer stays, and its list too."""
    refused = OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def refuse(*_):
        raise refused

    async def steps(app, pilot):
        monkeypatch.setattr(source, "reader", refuse)
        monkeypatch.setattr(source, "url", refuse)
        await press(pilot, "enter")
        for key in ("enter", "right"):
            while seen(app)[app.screen.query_one(Lines).chosen].startswith(("..", "deep")):
                await press(pilot, "down")
            await press(pilot, key)
            assert "Stale" in foot(app)
            if key == "enter":
                await press(pilot, "left")
        await press(pilot, "left", "ctrl+d", "down", "ctrl+d")
        assert "Stale" in foot(app)
        await press(pilot, "left")
        monkeypatch.setattr(source, "items", refuse)
        app.push_screen(PickScreen(source))
        await settled(pilot)
        assert "Stale" in foot(app)

    explored(source, steps)


def test_a_list_in_another_order_and_by_a_metric_that_none_has(source):
    def opened(order, steps):
        async def run():
            app = Explorer(source, None, order)
            async with app.run_test(size=(100, 24)) as pilot:
                await settled(pilot)
                await steps(app)

        asyncio.run(run())

    async def by_step(app):
        assert seen(app)[0].split()[0] == "checkpoint-3"

    async def by_nothing(app):
        assert "no checkpoint has the metric 'nope'" in foot(app)

    opened(("step", "asc"), by_step)
    opened(("metric:nope", "asc"), by_nothing)
