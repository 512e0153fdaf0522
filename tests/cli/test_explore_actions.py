"""What the explorer does to checkpoints: only what was confirmed, by the functions of `manage`."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from explorer_pilot import explored
from safetensors.torch import save

from bt_lightning.cli.explore import action_flows, copy_flows
from bt_lightning.cli.explore.task_progress import CancelledByUserError, TaskProgress
from bt_lightning.errors import StorePermanentError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.manage.trash import trashed
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish

pytestmark = pytest.mark.matrix


def weights(value):
    tensors = {"a.weight": torch.full((2, 3), value), "b": torch.ones(4)}
    return {"model.safetensors": save(tensors), "trainer.json": b"{}"}


@pytest.fixture
def root(tmp_path, make, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for step in (3, 20, 100):
        make(tmp_path / "ck", f"checkpoint-{step}", step, files=weights(float(step)))
    return tmp_path / "ck"


@pytest.fixture
def store(root, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    for job, steps in (("job-7", (3, 20, 100)), ("job-8", (5,))):
        for step in steps:
            made = make(tmp_path / job, f"checkpoint-{step}", step, files=weights(float(step)))
            publish(store, job_prefix("demo", job, 0), made)
    return store


def names(root):
    return sorted(one.manifest.checkpoint_id for one in list_committed(root)[0])


async def dialog(it, key):
    """Press a key that opens a dialog."""
    await it.press(key)
    await it.until(lambda: len(it.app.screen_stack) > 2)
    await it.settled()


def test_protection_is_set_shown_heeded_and_taken_away(root):
    source = DirectoryCheckpoints(root)

    async def steps(it):
        await dialog(it, "p")
        await it.press("escape")
        assert not any(item.protected for item in source.items())
        await dialog(it, "p")
        await it.press(*"ours", "enter")
        await it.says("checkpoint-100: protected")
        await it.shows("because ours" if "because ours" in it.text() else "ours")
        assert " P" in it.rows("checkpoints")[0]
        (item,) = [item for item in source.items() if item.protected]
        assert item.name == "checkpoint-100"
        await dialog(it, "D")
        assert "kept: protected" in it.text()
        await it.press("escape")
        assert len(names(root)) == 3
        await dialog(it, "p")
        await it.press("y")
        await it.says("no longer protected")
        assert not any(item.protected for item in source.items())

    explored(source, steps, size=(140, 30))


def test_nothing_is_deleted_that_was_not_confirmed_and_marks_are_what_goes(root):
    async def steps(it):
        for answer in (("n",), ("escape",), ("enter",), ("y", "escape"), ("y", "n", "o", "enter")):
            await dialog(it, "D")
            assert "This frees" in it.text()
            await it.press(*answer)
            await it.until(lambda: len(it.app.screen_stack) == 2)
            assert len(names(root)) == 3
        await it.press("down", "space", "space")  # 20 and 3
        assert it.main.marked == {"checkpoint-20", "checkpoint-3"}
        await dialog(it, "D")
        await it.press("y", *"yes", "enter")
        await it.says("2 deleted")
        assert names(root) == ["checkpoint-100"]
        await it.until(lambda: len(it.rows("checkpoints")) == 1)
        assert it.main.marked == frozenset()

    explored(DirectoryCheckpoints(root), steps)


def test_what_is_put_aside_can_be_brought_back(root):
    async def steps(it):
        await dialog(it, "D")
        await it.press("t")
        await it.says("1 put aside for 30 days")

    explored(DirectoryCheckpoints(root), steps)
    assert names(root) == ["checkpoint-20", "checkpoint-3"]
    assert [one.name for one in trashed(DirectoryCheckpoints(root))] == ["checkpoint-100"]


def test_a_file_that_others_share_frees_nothing(root):
    shared = root / "checkpoint-3" / "model.safetensors"
    other = root / "checkpoint-20" / "model.safetensors"
    shared.unlink()
    shared.hardlink_to(other)

    async def steps(it):
        await it.press("end")
        await dialog(it, "D")
        assert "; other checkpoints share" in it.text(), it.text()
        await it.press("n")

    explored(DirectoryCheckpoints(root), steps)


def test_a_download_is_whole_and_a_second_one_says_so(store, tmp_path):
    target = tmp_path / "here"
    target.mkdir()

    async def steps(it):
        for said in ("verified", "there already, whole"):
            await dialog(it, "g")
            await it.press("ctrl+u", *str(target), "enter")
            await it.says(said)

    explored(StoreCheckpoints(store, "demo", "job-7"), steps, size=(200, 30))
    assert names(target) == ["checkpoint-100"]


def test_a_running_action_is_seen_and_cancelled_and_the_next_one_ends_it(
    store, tmp_path, monkeypatch
):
    target, reads, goes_on = tmp_path / "here", [], threading.Event()
    target.mkdir()
    real = copy_flows.download_item

    def slow(source, item, to, entries, on_bytes):
        def counted(count):
            reads.append(count)
            assert goes_on.wait(30)
            on_bytes(count)

        return real(source, item, to, entries, counted)

    monkeypatch.setattr(copy_flows, "download_item", slow)

    async def steps(it):
        await dialog(it, "g")
        await it.press("ctrl+u", *str(target), "enter")
        await it.until(lambda: reads)
        await it.says("ctrl+x cancels")
        await dialog(it, "v")
        assert "is under way" in it.text()
        await it.press("escape", "down")  # the screen goes on
        assert it.main.item.name == "checkpoint-20"
        await it.press("up", "ctrl+x")
        goes_on.set()
        await it.says("cancelled")
        assert names(target) == []
        await dialog(it, "g")
        await it.press("ctrl+u", *str(target), "enter")
        await it.says("verified")

    explored(StoreCheckpoints(store, "demo", "job-7"), steps, size=(200, 30))
    assert names(target) == ["checkpoint-100"]


def test_to_quit_ends_what_is_under_way(store, tmp_path, monkeypatch):
    began, ended = threading.Event(), []

    def endless(_source, _before, task):
        began.set()
        try:
            while True:
                task(0)
        except CancelledByUserError:
            ended.append(True)
            raise

    monkeypatch.setattr(action_flows, "compare_with_norms", endless)

    async def steps(it):
        await it.press("d")
        await it.until(began.is_set)
        await dialog(it, "q")
        assert "is cancelled then" in it.text()
        await it.press("n")
        assert it.app.is_running
        await dialog(it, "q")
        await it.pilot.press("y")

    explored(StoreCheckpoints(store, "demo", "job-7"), steps)
    assert ended == [True]


def test_verdicts_name_what_is_damaged(root):
    file = root / "checkpoint-20" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    async def steps(it):
        await it.press("space", "space", "space", "v")
        await it.says("1 damaged")
        rows = it.rows("content")
        assert rows[0].startswith("2 whole, 1 damaged")
        assert sum(row.startswith("whole") for row in rows) == 2
        assert any(row.startswith("damaged") and "model.safetensors" in row for row in rows)

    explored(DirectoryCheckpoints(root), steps)


def test_a_copy_is_another_jobs(store, tmp_path):
    async def steps(it):
        await dialog(it, "c")
        await it.press(*store.name, "enter", "ctrl+u", *"other", "enter", "ctrl+u", *"copied")
        await it.press("enter")
        await it.says("checkpoint-100 -> ")

    explored(StoreCheckpoints(store, "demo", "job-7"), steps, size=(200, 30))
    (item,) = StoreCheckpoints(store, "other", "copied").items()
    assert item.name == "checkpoint-100"


@pytest.mark.parametrize("key", ["h", "c", "d"])
def test_exports_are_written_or_refused_as_the_command_line_says(root, tmp_path, key):
    made = tmp_path / "made"

    async def steps(it):
        await dialog(it, "e")
        await it.press(key)
        await it.press("ctrl+u", *str(made), "enter")
        if key == "h":
            await it.says("made: ")
        else:  # the tree of these checkpoints is empty
            await it.shows("error: ")

    explored(DirectoryCheckpoints(root), steps, size=(200, 30))
    assert made.exists() == (key == "h")


def test_an_action_that_fails_shows_its_error_and_the_screen_goes_on(root, tmp_path):
    target = tmp_path / "no-directory"
    target.write_text("a file")

    async def steps(it):
        await dialog(it, "g")
        await it.press("ctrl+u", *str(target), "enter")
        await it.shows("error: ")
        assert "download checkpoint-100: failed" in it.text()
        await it.press("escape", "down")
        assert it.main.item.name == "checkpoint-20"
        assert it.main.under_way is None
        await it.press("v")
        await it.says("whole")

    explored(DirectoryCheckpoints(root), steps)


def test_a_store_that_refuses_a_deletion_is_said(store, monkeypatch):
    def refuse(*_):
        msg = "s3://bucket refused: AccessDenied"
        raise StorePermanentError(msg)

    monkeypatch.setattr(action_flows, "delete_items", refuse)

    async def steps(it):
        await dialog(it, "D")
        await it.press("y", *"yes", "enter")
        await it.shows("error: s3://bucket refused: AccessDenied")
        await it.press("escape")
        assert len(it.rows("checkpoints")) == 3

    explored(StoreCheckpoints(store, "demo", "job-7"), steps)


def test_differences_have_norms_and_the_largest_is_first(root, make):
    files = {
        "model.safetensors": save(
            {"a.weight": torch.full((2, 3), 101.0), "b": torch.full((4,), 3.0), "c": torch.ones(2)}
        )
    }
    make(root, "later", 200, files=files)

    async def steps(it):
        await it.press("d")
        await it.says("differ")
        rows = it.rows("content")
        assert rows[0] == "1 added, 2 changed"
        assert rows[1].startswith(f"model: 2 tensors moved by {math.sqrt(4 * 4 + 6):.4g}")
        assert [row.split()[0] for row in rows[2:]] == ["b", "a.weight", "c"]
        assert rows[2].split()[1:3] == ["4", "200.00%"]
        assert rows[4].split()[1] == "added"
        await it.press("1", "space", "end", "d")  # the marked one with the last
        await it.shows("checkpoint-3 -> later")
        await it.press("1", "space", "d")
        await it.shows("checkpoint-3 -> later")
        await it.press("1", "home", "down", "space", "d")
        await it.shows("not more")

    explored(DirectoryCheckpoints(root), steps, size=(160, 30))


def test_the_url_of_a_file(root):
    async def steps(it):
        await dialog(it, "u")
        assert "file://" in it.text()
        await it.press("escape", "2")

    explored(DirectoryCheckpoints(root), steps)


def test_another_job_of_the_store_or_directory_beside_this(store, root, tmp_path, make):
    async def steps(it):
        await it.press("space", "J")
        await it.shows("job-8")
        await it.press("slash", *"8", "enter", "enter")
        await it.until(lambda: it.main.source.job == "job-8")
        await it.settled()
        assert [row.split()[0] for row in it.rows("checkpoints")] == ["checkpoint-5"]
        assert it.main.marked == frozenset()
        await it.press("J")
        await it.shows("job-7")
        await it.press("escape")
        assert it.main.source.job == "job-8"

    explored(StoreCheckpoints(store, "demo", "job-7"), steps)
    make(tmp_path / "beside", "checkpoint-9", 9)

    async def beside(it):
        await it.press("J")
        await it.shows("beside")
        await it.press("slash", *"beside", "enter", "enter")
        await it.until(lambda: len(it.rows("checkpoints")) == 1)
        assert "checkpoint-9" in it.rows("checkpoints")[0]

    explored(DirectoryCheckpoints(root), beside)


def test_what_only_the_disk_has_is_syncing(store, root, make):
    make(root, "checkpoint-400", 400, files=weights(4.0))
    both = JoinedCheckpoints(StoreCheckpoints(store, "demo", "job-7"), DirectoryCheckpoints(root))

    async def steps(it):
        assert " S" in it.rows("checkpoints")[0]
        await dialog(it, "D")
        assert "on the disk" in it.text()
        await it.press("n", "down")
        await dialog(it, "D")
        assert "on the disk and" in it.text()
        assert "in the store" in it.text()
        await it.press("n")

    explored(both, steps)


def test_progress_is_said_in_the_columns_that_there_are():
    task = TaskProgress("download checkpoint-100", 2_000_000_000)
    task.on_bytes(500_000_000)
    for width in (30, 58, 98, 198):
        assert len(task.line(width)) <= width
    assert "25%" in task.line(98)
    assert "500.00 MB of 2.00 GB" in task.line(98)
    task.cancel()
    with pytest.raises(CancelledByUserError):
        task.on_bytes(1)
