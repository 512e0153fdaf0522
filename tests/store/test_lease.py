"""At most one process writes to a place of a store; nobody waits for one that is known dead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from bt_lightning.errors import LeaseHeldError
from bt_lightning.file_limits import RECORD
from bt_lightning.path_layout import MANIFEST, lease_folder
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.lease import EXPIRES_S, Holder, Lease
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.publish import LeasedPublisher, publish
from bt_lightning.store.transfer.resume_publication import SentFiles

PREFIX = "job/rank-0"


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}")
    return open_store(request.getfixturevalue("s3_url"), request.getfixturevalue("s3").options)


@pytest.fixture
def lease():
    """Make leases that are given back at the end of the test."""
    with contextlib.ExitStack() as stack:

        def lease(store, owner="here", **options):
            made = Lease(store, PREFIX, owner, **options)
            stack.callback(made.release)
            return made

        yield lease


def content(store, number=1):
    return Holder.from_bytes(store.read(f"{lease_folder(PREFIX)}/{number:012}"))


def elsewhere(store, number=1, **facts):
    """Let a process of another machine hold the lease."""
    holder = replace(Holder.here("there"), machine="another", **facts)
    store.put(f"{lease_folder(PREFIX)}/{number:012}", holder.to_bytes())
    return holder


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_only_one_has_it_until_it_gives_it_back(store, lease):
    first, second = lease(store), lease(store, "there")
    first.take()
    first.take()
    with pytest.raises(LeaseHeldError, match=rf"the process {os.getpid()} on .*only one may"):
        second.take()
    first.confirm()
    first.release()
    assert list(store.list(lease_folder(PREFIX))) == []
    second.take()
    assert second.previous_token is None
    with pytest.raises(LeaseHeldError):
        first.take()


def test_of_many_that_ask_at_once_one_gets_it(store, lease):
    several = [lease(store, f"directory {number}") for number in range(8)]
    start, taken = threading.Barrier(len(several)), []

    def ask(one):
        start.wait()
        with contextlib.suppress(LeaseHeldError):
            one.take()
            taken.append(one)

    threads = [threading.Thread(target=ask, args=[one]) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (holder,) = taken
    holder.confirm()


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path, lease):
    code = (
        "import sys; from bt_lightning.store.lease import Lease;"
        "from bt_lightning.store.backends.local_folder import LocalStore; from pathlib import Path;"
        f"Lease(LocalStore(Path(sys.argv[1])), {PREFIX!r}, 'there').take();"
        "print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"taken\n"
        store = LocalStore(tmp_path)
        found = content(store)
        with pytest.raises(LeaseHeldError, match=f"the process {child.pid} "):
            lease(store).take()
        child.send_signal(signal.SIGKILL)
    later = lease(store)
    later.take()
    assert later.previous_token == found.token


def test_one_of_another_machine_is_waited_for_by_our_own_clock(store, lease):
    clock = Clock()
    ours = lease(store, clock=clock)
    holder = elsewhere(store)
    for beat in range(3):
        elsewhere(store, token=holder.token, beat=beat)
        with pytest.raises(LeaseHeldError):
            ours.take()
        clock.now += EXPIRES_S - 1
    with pytest.raises(LeaseHeldError):
        ours.take()
    clock.now += 1
    ours.take()
    assert ours.previous_token == holder.token
    assert content(store, 2).owner == "here"


def test_a_lease_that_nobody_can_read_is_waited_for_as_well(store, lease):
    clock = Clock()
    ours = lease(store, clock=clock)
    store.put(f"{lease_folder(PREFIX)}/{7:012}", b"rubbish")
    store.put(f"{lease_folder(PREFIX)}/not a number", b"rubbish")
    with pytest.raises(LeaseHeldError, match="by another process"):
        ours.take()
    clock.now += EXPIRES_S
    ours.take()
    assert ours.previous_token is None
    assert content(store, 8).owner == "here"


def test_a_process_of_the_same_directory_is_not_waited_for(store, lease):
    before = elsewhere(store, owner="here")
    ours = lease(store)
    ours.take()
    assert ours.previous_token == before.token


def test_one_that_lost_it_knows_and_does_not_take_it_back_from_a_living_one(store, lease):
    ours = lease(store)
    ours.take()
    other = elsewhere(store, 2, owner="here")  # the directory was copied to another machine
    with pytest.raises(LeaseHeldError, match=other.host):
        ours.confirm()
    with pytest.raises(LeaseHeldError):
        ours.take()


def test_a_lease_that_somebody_deleted_is_made_again(store, lease):
    ours = lease(store)
    ours.take()
    store.delete([info.key for info in store.list("")])
    with pytest.raises(LeaseHeldError, match="was deleted"):
        ours.confirm()
    ours.take()
    ours.confirm()


def test_it_is_written_anew_while_it_is_held(tmp_path, lease):
    beaten = threading.Event()

    class Watched(LocalStore):
        def put(self, key, data):
            super().put(key, data)
            beaten.set()

    store = Watched(tmp_path)
    ours = lease(store, beat_s=0.001)
    ours.take()
    assert beaten.wait(30)
    assert content(store).beat > 0
    ours.confirm()


@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_is_committed_by_one_that_lost_it(tmp_path, make, lease, when):
    """It may have been stopped for minutes between any two of its steps."""

    class Stopped(LocalStore):
        def put_new(self, key, data):
            if key.endswith(MANIFEST) and when == "after":
                elsewhere(self, 2)
            super().put_new(key, data)
            if key.endswith(MANIFEST) and when == "before":
                elsewhere(self, 2)

    store = Stopped(tmp_path / "store")
    ours = lease(store)
    ours.take()
    sent = SentFiles(tmp_path, store.name)
    sent.begin_lease(ours.previous_token, ours.token)
    with pytest.raises(LeaseHeldError):
        publish(store, PREFIX, make(tmp_path), publisher=LeasedPublisher(ours, sent))
    assert list_job(store, PREFIX).committed == {}


# what was sent


def test_what_was_sent_is_known_to_the_next_lease_and_to_no_other(tmp_path):
    sent = SentFiles(tmp_path, "s3://bucket/job")
    sent.begin_lease(None, "first")
    sent.add("job/a/file", "1")
    sent.add("job/ab/file", "2")
    next_start = SentFiles(tmp_path, "s3://bucket/job")
    next_start.begin_lease("first", "second")
    assert next_start.get("job/a/file") == "1"
    assert next_start.under("job/a") == {"job/a/file"}
    assert SentFiles(tmp_path, "s3://bucket/other").get("job/a/file") is None
    late = SentFiles(tmp_path, "s3://bucket/job")
    late.begin_lease("somebody else's", "fourth")
    assert late.get("job/a/file") is None
    assert SentFiles(tmp_path, "s3://bucket/job").get("job/a/file") is None


def test_what_was_sent_is_forgotten_before_other_bytes_are(tmp_path):
    sent = SentFiles(tmp_path, "here")
    sent.begin_lease(None, "first")
    sent.add("a/file", "1")
    sent.add("b/file", "2")
    sent.sending("a/file")
    sent.drop("b")
    again = SentFiles(tmp_path, "here")
    assert (again.get("a/file"), again.get("b/file")) == (None, None)


@pytest.mark.parametrize("rubbish", [b"", b"\x00\xff\n", b'"token"\n[1]\n["a", 3', b'{"a": 1}\n'])
def test_a_damaged_record_is_an_empty_one(tmp_path, rubbish):
    sent = SentFiles(tmp_path, "here")
    sent.begin_lease(None, "first")
    sent._file.write_bytes(rubbish)
    again = SentFiles(tmp_path, "here")
    again.begin_lease("first", "second")
    assert again.get("a") is None


def test_a_torn_line_costs_that_line_only(tmp_path):
    sent = SentFiles(tmp_path, "here")
    sent.begin_lease(None, "first")
    sent.add("a/file", "1")
    with sent._file.open("ab") as stream:
        stream.write(b'["b/file", "2')
    again = SentFiles(tmp_path, "here")
    assert (again.get("a/file"), again.get("b/file")) == ("1", None)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[" * 200_000,
        b"x" * (RECORD.size + 1),
        b'{"token": 1, "owner": "o", "host": "h", "machine": "m", "pid": 1, "started": "s"}',
        b'{"token": "t", "owner": "o", "host": "h", "machine": "m", "pid": "../x", "started": "s"}',
        b'{"token": "t", "owner": "o", "host": "h", "machine": "m", "pid": 1e999, "started": "s"}',
    ],
    ids=["empty", "deep", "large", "number", "text", "infinite"],
)
def test_what_is_no_lease_is_waited_for_as_one_of_nobody(store, lease, said):
    """Anybody may have put it there; a name of thousands of digits is none."""
    store.put(f"{lease_folder(PREFIX)}/{1:012}", said)
    store.put(f"{lease_folder(PREFIX)}/{'9' * 200}", b"{}")
    clock = Clock()
    mine = lease(store, clock=clock)
    with pytest.raises(LeaseHeldError):
        mine.take()
    clock.now += EXPIRES_S
    mine.take()
    mine.confirm()
