"""The logs of a directory in a store: all of them, in few objects, whoever sends, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import pytest

from bt_lightning.errors import StorePermanentError, StoreTransientError
from bt_lightning.localdir import event_log
from bt_lightning.localdir.event_log import append, log_line, note
from bt_lightning.log_kinds import EVENTS, OUTPUT, SEGMENT_BYTES, log_folder, segment_of_name
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.worker import send_logs
from bt_lightning.worker.send_logs import LogSender
from bt_lightning.worker_messages import LogMetrics

NONE = frozenset()
REFUSED = "no"


def in_store(scene, kind):
    """The segments of a log in the store, and their bytes."""
    store = LocalStore(scene.folder)
    found = {
        segment_of_name(info.key.rpartition("/")[2]): store.read(info.key)
        for info in store.list(log_folder(scene.prefix, kind))
    }
    return dict(sorted(found.items()))


def text(scene, kind):
    return b"".join(in_store(scene, kind).values())


def on_disk(scene, kind):
    return (scene.root / DOT_DIR / kind.file).read_bytes()


def sender(scene, **more):
    return LogSender(scene.root, LocalStore(scene.folder), scene.prefix, **more)


def fill(scene, size, start=0):
    """Append lines of all lengths."""
    number = start
    while size > 0:
        line = log_line("output", 1000.0 + number, text="x" * (number * 37 % 3000))
        append(scene.root, line, OUTPUT)
        size, number = size - len(line), number + 1
    return number


def test_a_log_is_cut_at_lines_into_objects_that_together_are_the_log(scene):
    fill(scene, 2.5 * SEGMENT_BYTES)
    sender(scene).send(ending=True)
    found = in_store(scene, OUTPUT)
    assert [segment.number for segment in found] == [0, 1, 2]
    assert all(data.endswith(b"\n") for data in found.values())
    assert text(scene, OUTPUT) == on_disk(scene, OUTPUT)


def test_only_the_object_that_grows_is_written_again_also_by_another_process(scene):
    number = fill(scene, 1.5 * SEGMENT_BYTES)
    first = sender(scene)
    assert not first.send(ending=True)
    versions = {info.key: info.version for info in LocalStore(scene.folder).list("")}
    fill(scene, SEGMENT_BYTES, number)
    for one in (first, sender(scene)):
        one.send(ending=True)
        now = {info.key: info.version for info in LocalStore(scene.folder).list("")}
        assert sum(now[key] != version for key, version in versions.items()) == 1
        assert text(scene, OUTPUT) == on_disk(scene, OUTPUT)


def test_a_line_that_is_half_written_waits_for_its_end(scene):
    note(scene.root, "one")
    with (scene.root / DOT_DIR / EVENTS.file).open("ab") as file:
        file.write(b'{"event": "tw')
    own = sender(scene)
    own.send(ending=True)
    assert text(scene, EVENTS).count(b"\n") == 1
    with (scene.root / DOT_DIR / EVENTS.file).open("ab") as file:
        file.write(b'o", "at": 1}\n')
    own.send(ending=True)
    assert text(scene, EVENTS) == on_disk(scene, EVENTS)


def test_a_line_longer_than_any_segment_holds_nothing_up(scene):
    append(scene.root, log_line("one", 1.0), OUTPUT)
    append(scene.root, log_line("long", 2.0, text="x" * (3 * SEGMENT_BYTES)), OUTPUT)
    append(scene.root, log_line("last", 3.0), OUTPUT)
    own = sender(scene)
    for _ in range(5):
        own.send(ending=True)
    assert b'"last"' in text(scene, OUTPUT)


def test_a_file_that_was_renamed_meanwhile_is_sent_to_its_end(scene, monkeypatch):
    monkeypatch.setattr(event_log, "EVENTS", replace(EVENTS, most_bytes=3000))
    own, numbers = sender(scene), iter(range(1000))
    for _ in range(30):
        for _ in range(10):
            note(scene.root, "one", number=next(numbers))
        own.send(ending=True)
    lines = text(scene, EVENTS).splitlines()
    assert len(lines) == len(set(lines)) == 300


def test_a_log_that_grows_slowly_is_not_sent_at_each_line(scene):
    now, puts = 1000.0, []
    store = LocalStore(scene.folder)
    original, store.put = store.put, lambda key, data: (puts.append(key), original(key, data))
    own = LogSender(scene.root, store, scene.prefix, clock=lambda: now)
    for _ in range(400):
        now += 15.0
        note(scene.root, "one", text="x" * 100)
        own.send(ending=False)
    assert len(puts) <= 400 / 4 + 20  # once a minute, when an eighth more is more than that


def test_of_too_much_the_first_and_the_last_stay(scene, monkeypatch):
    monkeypatch.setattr(send_logs, "MOST_OBJECTS", 12)
    own, number = sender(scene), 0
    for _ in range(10):
        number = fill(scene, 2 * SEGMENT_BYTES, number)
        own.send(ending=True)
    numbers = [segment.number for segment in in_store(scene, OUTPUT)]
    assert numbers[:3] == [0, 1, 2]
    assert numbers[3:] == list(range(numbers[3], numbers[3] + 9))
    assert text(scene, OUTPUT).endswith(on_disk(scene, OUTPUT)[-1000:])
    again = sender(scene)  # it lists what is there
    fill(scene, SEGMENT_BYTES, number)
    again.send(ending=True)
    assert len(in_store(scene, OUTPUT)) == 12


def test_what_a_lost_disk_had_sent_stays_beside_what_comes_then(scene):
    note(scene.root, "one")
    sender(scene).send(ending=True)
    before = text(scene, EVENTS)
    shutil.rmtree(scene.root / DOT_DIR)
    note(scene.root, "two")
    sender(scene).send(ending=True)
    assert text(scene, EVENTS) == before + on_disk(scene, EVENTS)


def test_what_a_killed_process_wrote_half_is_deleted(scene):
    note(scene.root, "one")
    folder = scene.folder / log_folder(scene.prefix, EVENTS)
    folder.mkdir(parents=True)
    (folder / ".1700000000000-00000000-00000.jsonl.part").write_bytes(b"half")
    sender(scene).send(ending=True)
    assert len(list(folder.iterdir())) == 1


def test_secrets_do_not_reach_the_store(scene):
    note(scene.root, "store_failed", error="s3://user:hidden1@host refused; key hidden2")
    sender(scene, secrets={"hidden2"}).send(ending=True)
    assert b"hidden" not in text(scene, EVENTS)
    assert b"store_failed" in text(scene, EVENTS)


def test_a_worker_sends_the_logs_before_it_says_that_all_is_sent(scene):
    worker = scene.worker()
    worker.begin(NONE)
    note(scene.root, "one")
    assert worker.send_if_room(LogMetrics(log_line("metrics", 1.0, step=3, values={})))
    scene.make(1)
    worker.drain(30)
    assert b'"one"' in text(scene, EVENTS)
    assert b'"published"' in text(scene, EVENTS)
    folder = (scene.folder / log_folder(scene.prefix, EVENTS)).parent
    names = {path.name for path in folder.iterdir()}
    assert names == {"events", "metrics"}


def test_a_worker_whose_trainer_is_killed_sends_the_last_lines(scene):
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    note(scene.root, "last", why="killed")
    worker._conn.close()  # as the kernel does for a dead trainer
    scene.eventually(lambda: b'"last"' in text(scene, EVENTS))


def test_a_worker_that_is_killed_leaves_the_rest_to_the_next(scene):
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    os.kill(worker.pid, signal.SIGKILL)
    note(scene.root, "one")
    worker.poll()
    worker.drain(30)
    assert b'"one"' in text(scene, EVENTS)
    assert len(in_store(scene, EVENTS)) == 1


@pytest.mark.parametrize("error", [StoreTransientError, StorePermanentError])
def test_a_store_that_refuses_logs_holds_up_nothing_and_gets_them_later(scene, error):
    note(scene.root, "one")
    store = LocalStore(scene.folder)
    own = LogSender(scene.root, store, scene.prefix)
    original = store.put

    def refuse(_key, _data):
        raise error(REFUSED)

    store.put = refuse
    with pytest.raises(error):
        own.send(ending=True)
    store.put = original
    own.forget()
    own.send(ending=True)
    assert text(scene, EVENTS) == on_disk(scene, EVENTS)
