"""Room is measured, never remembered; and what keeps a copy on the disk, or lets it go."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import StoreTransientError
from bt_lightning.localdir import event_log
from bt_lightning.localdir.atomic_directory import delete_directory, make_trash
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.disk_space import DiskSpace, measure, planned, spare, usage
from bt_lightning.localdir.event_log import note, read_events
from bt_lightning.localdir.newest_in_store import newest_in_store, note_newest_in_store
from bt_lightning.localdir.read_locks import delete_unless_read, hold_for_reading
from bt_lightning.log_kinds import EVENTS
from bt_lightning.manifest import Manifest
from bt_lightning.retention import Tier, TierCheckpoint, evictable
from bt_lightning.worker.calls_between_threads import ThreadCalls

relaxed = settings(deadline=None, database=None, max_examples=100)


def make(root, step=1, size=5000):
    def describe(entries):
        return Manifest(
            checkpoint_id=f"checkpoint-{step}",
            generation=1,
            step=step,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    files = {"model.safetensors": lambda: [bytes(size)], "trainer.json": lambda: [b"{}"]}
    return commit(root / f"checkpoint-{step}", root, files, describe)


@pytest.mark.parametrize("sizes", [[0], [1, 4096, 4097], [10_000_000], [5, 20_000_000, 3]])
def test_what_is_planned_is_at_least_what_a_checkpoint_takes(tmp_path, sizes):
    def describe(entries):
        return Manifest(
            checkpoint_id="a",
            generation=1,
            step=1,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    files = {f"file-{n}": (lambda size=size: [bytes(size)]) for n, size in enumerate(sizes)}
    commit(tmp_path / "a", tmp_path, files, describe)
    assert usage(tmp_path / "a") <= planned(sizes)


def test_a_file_of_two_names_counts_once_and_a_hole_not_at_all(tmp_path):
    (tmp_path / "one").write_bytes(bytes(100_000))
    before = usage(tmp_path)
    assert 100_000 <= before < 110_000
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10_000_000)
    (tmp_path / "link").symlink_to("/usr")
    assert usage(tmp_path) < before + 20_000


def test_the_room_is_the_least_of_what_the_volume_and_the_budget_leave(tmp_path):
    free = DiskSpace(free=10_000_000, size=100_000_000)
    assert free.room == 10_000_000 - spare(100_000_000)
    held = DiskSpace(free=10_000_000, size=100_000_000, used=3_000_000, budget=4_000_000)
    assert held.room == 1_000_000 - spare(4_000_000)
    assert "3,000,000 of the budget of 4,000,000 are used" in held.describe()
    assert measure(tmp_path, None).used == 0
    assert measure(tmp_path, 1).room < 0


@relaxed
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh")), max_size=8),
    st.sets(st.sampled_from("abcdefgh")),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_only_what_the_store_has_may_go_and_the_newest_goes_last(entries, stored, kept):
    local = [
        TierCheckpoint(place=str(n), checkpoint_id=f"c{n}", digest=digest, order=(step, 1, str(n)))
        for n, (step, digest) in enumerate(entries)
    ]
    resumed_from, protected = set(sorted(kept)[::2]), set(sorted(kept)[1::2])
    tier = Tier(name="disk", checkpoints=local, resumed_from=resumed_from, protected=protected)
    chosen = evictable(tier, stored)
    assert all(entry.digest in stored - kept for entry in chosen)
    assert [entry.order for entry in chosen] == sorted(entry.order for entry in chosen)
    assert len(chosen) == sum(entry.digest in stored - kept for entry in local)


def test_a_copy_that_is_read_is_not_evicted_and_goes_when_it_is_not(tmp_path):
    make(tmp_path)
    path = tmp_path / "checkpoint-1"
    reader = hold_for_reading(path)
    assert not delete_unless_read(path, tmp_path)
    assert path.exists()
    os.close(reader)
    assert delete_unless_read(path, tmp_path)
    assert delete_unless_read(path, tmp_path), "it is gone already"
    assert hold_for_reading(path) is None


def fill(file):
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def test_deleting_needs_no_room(small_disk):
    root = small_disk(1024 * 1024)
    make(root)
    make_trash(root)
    with pytest.raises(OSError, match="No space"):
        fill(root / "rest")
    delete_directory(root / "checkpoint-1", root)
    assert not (root / "checkpoint-1").exists()
    assert measure(root, None).free > 0


def test_half_a_line_that_a_full_disk_left_spoils_no_other_event(tmp_path):
    note(tmp_path, "one")
    file = tmp_path / ".bt_lightning" / EVENTS.file
    with file.open("ab") as stream:
        stream.write(b'{"event": "tw')
    note(tmp_path, "three")
    note(tmp_path, "four")
    assert [event["event"] for event in read_events(tmp_path)] == ["one", "three", "four"]


def test_only_a_newer_checkpoint_replaces_the_note_of_what_the_store_alone_has(tmp_path):
    assert newest_in_store(tmp_path) is None
    two, one = make(tmp_path, 2), make(tmp_path, 1)
    note_newest_in_store(tmp_path, two)
    note_newest_in_store(tmp_path, one)
    assert newest_in_store(tmp_path).order == two.order
    file = tmp_path / ".bt_lightning" / "store_only.json"
    for rubbish in ("", "[]", "{}", '{"step": "x"}', "[" * 10_000, '{"checkpoint": 1}'):
        file.write_text(rubbish)
        assert newest_in_store(tmp_path) is None


def test_a_call_that_never_starts_is_given_up_and_never_made():
    changed = threading.Condition()
    calls = ThreadCalls(changed)
    done = []
    with pytest.raises(StoreTransientError, match="still busy"):
        calls.wait(done.append, limit_s=0.01)
    with changed:
        assert calls.take() is None
        calls.close()
    with pytest.raises(StoreTransientError, match="is ending"):
        calls.wait(done.append)
    assert done == []


def test_events_are_bounded_and_read_across_the_files_that_hold_them(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "EVENTS", replace(EVENTS, most_bytes=2000))
    folder = tmp_path / ".bt_lightning"
    marks = {}
    for number in range(300):
        marks[number] = event_log.mark_events(tmp_path)
        note(tmp_path, "one", number=number)
        assert sum(file.stat().st_size for file in folder.iterdir()) < 3 * 2000
    assert {file.name for file in folder.iterdir()} == {EVENTS.file, EVENTS.older}
    found = [event["number"] for event in read_events(tmp_path)]
    assert found == list(range(found[0], 300))
    assert len(found) > 2000 // 60
    for number, mark in marks.items():
        since = [event["number"] for event in read_events(tmp_path, mark)]
        assert since == [each for each in found if each >= number]
    assert list(read_events(tmp_path, event_log.mark_events(tmp_path))) == []


def test_events_of_many_processes_are_all_there_though_the_file_changes(tmp_path, monkeypatch):
    # the lines below are 60 KB at most
    monkeypatch.setattr(event_log, "EVENTS", replace(EVENTS, most_bytes=30_000))

    def write(writer):
        for number in range(200):
            note(tmp_path, "one", writer=writer, number=number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    found = [(event["writer"], event["number"]) for event in read_events(tmp_path)]
    assert len(found) == len(set(found))
    for writer in range(4):
        mine = [number for who, number in found if who == writer]
        assert mine == list(range(mine[0], 200))


def test_an_event_is_noted_though_another_process_renames_the_file_meanwhile(tmp_path, monkeypatch):
    """The moment after the rename, before anybody has made a new one."""
    monkeypatch.setattr(event_log, "EVENTS", replace(EVENTS, most_bytes=1))

    def lock(descriptor, how):
        (tmp_path / ".bt_lightning" / EVENTS.file).rename(tmp_path / ".bt_lightning" / EVENTS.older)

    monkeypatch.setattr(event_log, "lock", lock)
    for number in (1, 2):  # a file that has an event is large enough to be renamed
        note(tmp_path, "one", number=number)
    assert [event["number"] for event in read_events(tmp_path)] == [1, 2]
