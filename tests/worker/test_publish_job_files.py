"""Files that belong to no checkpoint: when each is sent, in which order, and what is said of it."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from bt_lightning.errors import LeaseHeldError, StorePermanentError, StoreTransientError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, list_committed
from bt_lightning.manifest import Manifest
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.publish import publish
from bt_lightning.store.transfer.unpublish import unpublish
from bt_lightning.worker.publish_job_files import CHANGING_RETRY_S, REST_S, JobFilePublisher

PREFIX = "p/rank-0"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Store(LocalStore):
    """Keeps the order of what is sent; may fail, or let something happen in the middle."""

    def __init__(self, root):
        super().__init__(root)
        self.sent = []
        self.meanwhile = {}
        self.failing = {}
        self.reached = None
        self._lock = threading.Lock()

    def send(self, source, key, reuse=None):
        name = key.removeprefix(f"{PREFIX}/")
        if name in self.failing:
            msg = f"no {name}"
            raise self.failing[name](msg)
        if name in self.meanwhile:
            with source.hold(0, source.size // 2):
                self.meanwhile.pop(name)()
        super().send(source, key, reuse)
        with self._lock:
            self.sent.append(name)

    def put(self, key, data):
        if "" in self.failing:
            msg = "no"
            raise self.failing[""](msg)
        super().put(key, data)


class Scene:
    def __init__(self, tmp_path):
        self.root = tmp_path / "root"
        self.root.mkdir()
        self.folder = tmp_path / "store"
        self.store = Store(self.folder)
        self.clock = Clock()
        self.lease = Lease(self.store, PREFIX, "owner")
        self.checkpoints = set()
        self.start()

    def start(self, patterns=Patterns()):  # noqa: B008 - it never changes
        self.files = JobFilePublisher(self.root, patterns, "there", self.clock)

    def write(self, path, data=b"x"):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def look(self, after_s=0.0):
        """Time goes by; the directory is looked at, and what may be sent is sent."""
        self.clock.now += after_s
        self.files.scan()
        return self.send()

    def send(self):
        if not self.files.ready:
            return False
        self.lease.take()
        listing = list_job(self.store, PREFIX)
        self.files.begin(self.store, PREFIX, listing.job_files())
        return self.files.send(self.store, PREFIX, self.lease, self.checkpoints, lambda: True)

    def stored(self):
        listing = list_job(self.store, PREFIX)
        return {path: (self.folder / PREFIX / path).read_bytes() for path in listing.job_files()}


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.lease.release()


def test_a_file_is_sent_when_it_has_rested(scene):
    scene.write("a.json", b"{}")
    scene.look()
    scene.look(REST_S - 0.1)
    assert scene.store.sent == []
    assert scene.files.waiting == ("a.json",)
    scene.look(0.1)
    assert scene.stored() == {"a.json": b"{}"}
    assert scene.files.waiting == ()
    scene.look(100)
    assert scene.store.sent == ["a.json"]


def test_a_change_starts_the_rest_anew_and_later_the_whole_file_is_sent_again(scene):
    file = scene.write("log", b"one\n")
    scene.look()
    scene.look(REST_S / 2)
    file.write_bytes(b"one\ntwo\n")
    scene.look(REST_S / 2)
    assert scene.store.sent == []
    scene.look(REST_S)
    assert scene.stored() == {"log": b"one\ntwo\n"}
    file.write_bytes(b"1")
    scene.look()
    scene.look(REST_S)
    assert scene.stored() == {"log": b"1"}


def test_small_files_go_before_large_ones(scene):
    """An adapter is of use at once, while the optimizer's state is under way for minutes."""
    for path, size in (("optimizer.pt", 300_000), ("adapter.bin", 2000), ("config.json", 20)):
        scene.write(f"hf/{path}", bytes(size))
    large = scene.write("huge.bin")
    os.truncate(large, 70 * 1024 * 1024)
    scene.look()
    scene.look(REST_S)
    assert scene.store.sent[-1] == "huge.bin"
    assert set(scene.store.sent) == {
        "hf/optimizer.pt",
        "hf/adapter.bin",
        "hf/config.json",
        "huge.bin",
    }


def test_an_empty_file_is_sent_too(scene):
    scene.write("done", b"")
    scene.look()
    scene.look(REST_S)
    assert scene.stored() == {"done": b""}


def test_what_is_deleted_on_the_disk_stays_in_the_store_and_a_rename_is_a_new_file(scene):
    scene.write("a", b"1")
    scene.look()
    scene.look(REST_S)
    (scene.root / "a").rename(scene.root / "b")
    scene.look()
    scene.look(REST_S)
    assert scene.stored() == {"a": b"1", "b": b"1"}
    (scene.root / "b").unlink()
    scene.look(REST_S)
    assert set(scene.stored()) == {"a", "b"}
    assert scene.files.waiting == ()


def test_a_log_that_never_rests_is_sent_once_a_minute(scene):
    """Otherwise nothing of it would survive the machine."""
    file = scene.write("log")
    scene.look()
    for _ in range(int(CHANGING_RETRY_S)):
        with file.open("ab") as stream:
            stream.write(b"x")
        scene.look(1.0)
    assert scene.store.sent == ["log"]
    assert scene.files.waiting == ("log",), "what changed since is to come"
    scene.look(REST_S)
    assert scene.stored()["log"] == file.read_bytes()


def test_a_large_file_that_never_rests_is_not_finished(scene):
    file = scene.write("optimizer.pt", bytes(9 * 1024 * 1024))
    scene.look()
    for _ in range(2 * int(CHANGING_RETRY_S)):
        with file.open("ab") as stream:
            stream.write(b"x")
        scene.look(1.0)
    assert scene.store.sent == []


CHANGES = {
    "rewritten": lambda file: file.write_bytes(b"B" * 1000),
    "truncated": lambda file: os.truncate(file, 10),
    "appended to": lambda file: file.write_bytes(b"A" * 1000 + b"B"),
    "replaced": lambda file: (file.parent / "other").rename(file),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_of_a_file_that_changes_while_it_is_sent_the_store_never_has_a_mix(scene, what):
    file = scene.write("a", b"0" * 1000)
    scene.look()
    scene.look(REST_S)
    file.write_bytes(b"A" * 1000)
    (scene.root / "other").write_bytes(b"B" * 1000)
    scene.look()
    scene.store.meanwhile["a"] = lambda: CHANGES[what](file)
    scene.look(REST_S)
    assert scene.store.meanwhile == {}
    assert scene.stored()["a"] == b"0" * 1000
    scene.look()
    scene.look(REST_S)
    expected = file.read_bytes() if what != "deleted" else b"0" * 1000
    assert scene.stored()["a"] == expected
    assert scene.files.complaints == []
    assert scene.files.waiting == ()


# the end of a training process


def test_when_the_process_is_gone_everything_counts_as_rested(scene):
    scene.write("a")
    scene.files.end(gone=True)
    scene.look()
    assert set(scene.stored()) == {"a"}
    assert not scene.files.unsettled


def test_the_end_waits_for_a_file_to_rest_but_not_for_one_that_never_does(scene):
    file = scene.write("a")
    log = scene.write("log")
    scene.files.end(gone=False)
    scene.look()
    assert scene.files.unsettled
    for _ in range(12):
        with log.open("ab") as stream:
            stream.write(b"x")
        scene.look(0.5)
    assert scene.stored() == {"a": file.read_bytes(), "log": scene.stored()["log"]}
    assert scene.stored()["log"]
    assert not scene.files.unsettled
    assert scene.files.waiting == (), "it went as it was, and is all that can be had"
    scene.files.cancel_end()
    scene.look(REST_S)
    assert scene.stored()["log"] == log.read_bytes()


@pytest.mark.parametrize("changes", [2, 99])
def test_the_end_tries_a_file_that_changes_again_and_says_what_it_does(scene, changes):
    log, number = scene.write("log"), itertools.count()

    def append():
        with log.open("ab") as stream:
            stream.write(b"x")
        if next(number) < changes:
            scene.store.meanwhile["log"] = append

    append()
    scene.files.end(gone=False)
    for _ in range(12):
        scene.look(0.5)
        with log.open("ab") as stream:
            stream.write(b"y")
    assert not scene.files.unsettled
    if changes == 2:
        assert scene.stored()["log"]
        assert (scene.files.waiting, scene.files.reason) == ((), None)
    else:
        assert scene.files.waiting == ("log",)
        assert scene.files.reason == "log changes while it is read"
        assert next(number) < 20, "not again and again between two scans"


# restarts


def test_a_restart_sends_only_what_changed(scene):
    scene.write("a", b"1")
    file = scene.write("b", b"1")
    scene.look()
    scene.look(REST_S)
    file.write_bytes(b"22")
    scene.start()
    scene.look()
    scene.look(REST_S)
    assert sorted(scene.store.sent) == ["a", "b", "b"]
    assert scene.stored() == {"a": b"1", "b": b"22"}


def test_what_the_store_has_lost_is_sent_again(scene):
    scene.write("a", b"1")
    scene.write("b", b"1")
    scene.look()
    scene.look(REST_S)
    (scene.folder / PREFIX / "a").unlink()
    (scene.folder / PREFIX / "b").write_bytes(b"cut short?")
    scene.start()
    scene.look()
    scene.look(REST_S)
    assert scene.stored() == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize("how", ["another directory sent there", "the record is lost"])
def test_a_record_that_may_be_wrong_costs_a_sending_never_a_miss(scene, tmp_path, how):
    scene.write("a", b"1")
    scene.look()
    scene.look(REST_S)
    if how == "the record is lost":
        scene.files._uploaded._file.unlink()
    else:
        other, scene.root = scene.root, tmp_path / "other machine"
        scene.start()
        scene.write("a", b"2")
        scene.look()
        scene.look(REST_S)
        assert scene.stored() == {"a": b"2"}
        scene.root = other
    scene.start()
    scene.look()
    scene.look(REST_S)
    assert scene.stored() == {"a": b"1"}
    assert len(scene.store.sent) == (2 if how == "the record is lost" else 3)


# failures


def test_a_file_that_the_store_refuses_is_told_once_and_blocks_no_other(scene):
    file = scene.write("bad")
    scene.write("good")
    scene.store.failing["bad"] = StorePermanentError
    scene.look()
    scene.look(REST_S)
    assert set(scene.stored()) == {"good"}
    assert scene.files.complaints == ["the file bad is not in the store: no bad"]
    assert scene.files.waiting == ("bad",)
    assert scene.files.reason == "no bad"
    file.write_bytes(b"another")
    scene.look()
    scene.look(REST_S)
    scene.files.end(gone=False)
    scene.look()
    assert not scene.files.unsettled
    assert len(scene.files.complaints) == 1
    scene.store.failing.clear()
    file.write_bytes(b"and another")
    scene.look()
    scene.look(REST_S)
    assert set(scene.stored()) == {"good", "bad"}
    assert scene.files.reason is None


def test_a_store_that_refuses_everything_is_no_failure_of_each_file(scene):
    for number in range(100):
        scene.write(f"f{number}")
        scene.store.failing[f"f{number}"] = StorePermanentError
    scene.look()
    scene.clock.now += REST_S
    scene.lease.take()
    scene.files.begin(scene.store, PREFIX, {})
    scene.store.failing[""] = StorePermanentError
    with pytest.raises(StorePermanentError):
        scene.send()
    assert scene.files.complaints == []
    assert len(scene.files.waiting) == 100


def test_a_store_that_fails_for_a_while_gets_everything_later(scene):
    scene.write("a")
    scene.write("b")
    scene.store.failing["b"] = StoreTransientError
    scene.look()
    with pytest.raises(StoreTransientError):
        scene.look(REST_S)
    assert "b" in scene.files.waiting
    scene.store.failing.clear()
    scene.files.forget()
    scene.look(1)
    assert set(scene.stored()) == {"a", "b"}
    assert scene.files.complaints == []


def test_a_file_that_cannot_be_read_is_told_once(scene, monkeypatch):
    import bt_lightning.store.transfer.job_file_source as module

    scene.write("a")
    scene.write("b")

    class System:
        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, flags):
            if path.name == "a":
                raise PermissionError(13, "Permission denied")
            return os.open(path, flags)

    monkeypatch.setattr(module, "os", System())
    scene.look()
    scene.look(REST_S)
    assert set(scene.stored()) == {"b"}
    (complaint,) = scene.files.complaints
    assert "the file a is not in the store" in complaint
    assert "Permission denied" in complaint


def test_names_that_no_store_can_have_are_told_once_and_not_waited_for(scene):
    scene.write("new\nline")
    scene.write("good")
    for _ in range(3):
        scene.look(REST_S)
    (complaint,) = scene.files.complaints
    assert "new\\nline" in complaint
    assert scene.files.waiting == ()
    assert set(scene.stored()) == {"good"}


def test_nothing_is_sent_once_another_process_writes_there(scene):
    scene.write("a")
    scene.look()
    scene.lease.take()
    scene.files.begin(scene.store, PREFIX, {})
    scene.store.put_new(f"{PREFIX}/.bt_lightning-lease/{2:012}", b"another's")
    scene.clock.now += REST_S
    with pytest.raises(LeaseHeldError):
        scene.files.send(scene.store, PREFIX, scene.lease, (), lambda: True)
    assert scene.store.sent == []


# beside checkpoints


def make(root, name, step=1):
    def describe(entries):
        return Manifest(
            checkpoint_id=name,
            generation=1,
            step=step,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    manifest = commit(root / name, root, {"model.safetensors": lambda: [b"w" * 10]}, describe)
    return LocalCheckpoint(root / name, manifest)


def test_files_are_no_checkpoints_and_checkpoints_no_files(scene):
    publish(scene.store, PREFIX, make(scene.root, "checkpoint-1"))
    scene.write("hf/checkpoint-2/notes.txt")
    scene.write("run.log")
    scene.look()
    scene.look(REST_S)
    listing = list_job(scene.store, PREFIX)
    assert set(listing.committed) == {"checkpoint-1"}
    assert listing.unfinished == frozenset()
    assert set(listing.job_files()) == {"hf/checkpoint-2/notes.txt", "run.log"}
    assert len(list_committed(scene.root)[0]) == 1


def test_no_file_goes_into_the_folder_of_a_checkpoint(scene):
    """After a lost disk the user copied something else under that name: committed bytes stay."""
    scene.checkpoints = {"checkpoint-1"}
    scene.write("checkpoint-1/deep/notes.txt")
    scene.write("checkpoint-10/notes.txt")
    scene.look()
    scene.look(REST_S)
    assert scene.store.sent == ["checkpoint-10/notes.txt"]
    (complaint,) = scene.files.complaints
    assert "checkpoint-1/deep/notes.txt" in complaint
    assert "has a checkpoint checkpoint-1" in complaint


@pytest.mark.parametrize("path", ["checkpoint-1/notes.txt", "checkpoint-1/a/b", "checkpoint-1"])
def test_a_checkpoint_does_not_go_into_a_folder_of_files(scene, path):
    """Deleting it there would delete them as well."""
    scene.store.put(f"{PREFIX}/{path}", b"the user's")
    checkpoint = make(scene.root, "checkpoint-1")
    assert publish(scene.store, PREFIX, checkpoint) == "checkpoint-1@2"
    assert publish(scene.store, PREFIX, checkpoint) == "checkpoint-1@2"
    assert unpublish(scene.store, PREFIX, "checkpoint-1@2")
    assert unpublish(scene.store, PREFIX, "checkpoint-1")
    assert [info.key for info in scene.store.list(PREFIX)] == [f"{PREFIX}/{path}"]
