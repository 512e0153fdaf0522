"""What is left to do is read off the disk and the store; deletes wait for something newer."""

from __future__ import annotations

import contextlib

import pytest

from bt_lightning.errors import StoreTransientError
from bt_lightning.localdir import protection
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.protection_record import Protection
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog import protection as stored_protect
from bt_lightning.store.catalog import removal_requests
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.transfer.publish import publish
from bt_lightning.worker.publisher_tasks import PublisherTasks
from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def begin():
    """Begin the duties of a directory, as a worker does; they end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(root, store, prefix, pinned):
            duties = PublisherTasks(root, store, prefix, pinned)
            stack.callback(duties.leave)
            return duties

        yield begin


def on_disk(root):
    return [found.manifest.checkpoint_id for found in list_committed(root)[0]]


def in_store(store):
    return set(list_job(store, "p").committed)


def waiting(duties):
    return [found.manifest.checkpoint_id for found in duties.outbox()]


def test_the_outbox_is_what_is_here_and_not_there_newest_first(begin, root, store, make):
    for step in (1, 10, 9):
        make(root, f"checkpoint-{step}", step)
    duties = begin(root, store, "p", ())
    assert waiting(duties) == ["checkpoint-10", "checkpoint-9", "checkpoint-1"]
    assert duties.publish_next().manifest.step == 10
    assert waiting(duties) == ["checkpoint-9", "checkpoint-1"]
    assert begin(root, None, "p", ()).outbox() == []


def test_a_restart_publishes_only_what_is_missing(begin, root, store, make):
    for step in (1, 2):
        make(root, f"checkpoint-{step}", step)
    begin(root, store, "p", ()).publish_next()
    again = begin(root, store, "p", ())
    assert again.publish_next().manifest.step == 1
    assert again.publish_next() is None
    assert in_store(store) == {"checkpoint-1", "checkpoint-2"}


def test_what_is_about_to_go_is_not_sent_unless_it_is_all_there_is(begin, root, store, make):
    old = make(root, "checkpoint-1", 1)
    request_local_removal(root, old.manifest.digest)
    duties = begin(root, store, "p", ())
    assert waiting(duties) == ["checkpoint-1"], "the only checkpoint of a run must be safe"
    make(root, "checkpoint-2", 2)
    assert waiting(duties) == ["checkpoint-2"]


def test_a_request_is_honoured_in_each_tier_only_when_something_newer_is_there(
    begin, root, store, make
):
    """Invariant 4: the disk may be lost: what is newer there frees nothing in the store."""
    old = make(root, "checkpoint-1", 1)
    publish(store, "p", old)
    request_local_removal(root, old.manifest.digest)
    duties = begin(root, store, "p", ())
    duties.delete_local()
    duties.delete_stored()
    assert on_disk(root) == ["checkpoint-1"]
    make(root, "checkpoint-2", 2)
    duties.delete_local()
    assert on_disk(root) == ["checkpoint-2"]
    duties.delete_stored()
    assert in_store(store) == {"checkpoint-1"}, "the store held nothing newer"
    assert requested_local_removals(root).keys() == {old.manifest.digest}
    duties.publish_next()
    duties.delete_stored()
    assert in_store(store) == {"checkpoint-2"}
    assert requested_local_removals(root).keys() == frozenset()


def test_pinned_checkpoints_stay_in_both_tiers_and_so_does_their_request(begin, root, store, make):
    """What the run resumed from is not deleted by this run; the next one may."""
    old = make(root, "checkpoint-1", 1)
    new = make(root, "checkpoint-2", 2)
    for checkpoint in (old, new):
        publish(store, "p", checkpoint)
    request_local_removal(root, old.manifest.digest)
    duties = begin(root, store, "p", {old.manifest.digest})
    duties.delete_local()
    duties.delete_stored()
    assert on_disk(root) == ["checkpoint-2", "checkpoint-1"]
    assert in_store(store) == {"checkpoint-1", "checkpoint-2"}
    assert requested_local_removals(root).keys() == {old.manifest.digest}
    later = begin(root, store, "p", ())
    later.delete_local()
    later.delete_stored()
    assert on_disk(root) == ["checkpoint-2"]
    assert in_store(store) == {"checkpoint-2"}


def test_a_request_does_not_hit_a_later_generation_of_the_same_id(begin, root, store, make):
    old = make(root, "last", 1, generation=1)
    request_local_removal(root, old.manifest.digest)
    make(root, "last", 2, generation=2)
    make(root, "checkpoint-9", 9)
    duties = begin(root, store, "p", ())
    duties.delete_local()
    while duties.publish_next():
        pass
    duties.delete_stored()
    assert sorted(on_disk(root)) == ["checkpoint-9", "last"]
    assert requested_local_removals(root).keys() == frozenset(), (
        "the request is done: that generation is gone"
    )


def test_an_older_generation_goes_from_the_store_when_the_newer_one_is_there(
    begin, root, store, make
):
    duties = begin(root, store, "p", ())
    for generation in (1, 2, 3):
        make(root, "last", 5, generation=generation)
        assert duties.publish_next() is not None
        duties.delete_stored()
        expected = "last" if generation == 1 else f"last@{generation}"
        assert in_store(store) == {expected}


def test_without_a_store_requests_are_carried_out_on_the_disk(begin, root, make):
    old = make(root, "checkpoint-1", 1)
    make(root, "checkpoint-2", 2)
    request_local_removal(root, old.manifest.digest)
    duties = begin(root, None, "p", ())
    duties.delete_local()
    assert duties.publish_next() is None
    duties.delete_stored()
    assert on_disk(root) == ["checkpoint-2"]
    assert requested_local_removals(root).keys() == frozenset()


def test_another_checkpoint_of_the_disk_is_never_deleted_unasked(begin, root, store, make):
    """People copy checkpoints: two directories with one id are both theirs."""
    make(root, "copy-of-a", 1)
    make(root, "b", 2)
    duties = begin(root, store, "p", ())
    duties.delete_local()
    assert sorted(on_disk(root)) == ["b", "copy-of-a"]


def test_a_store_that_fails_is_looked_at_again(begin, root, store, make):
    make(root, "checkpoint-1", 1)

    class Failing(LocalStore):
        failing = False

        def put_new(self, key, data):
            if self.failing:
                msg = "no"
                raise StoreTransientError(msg)
            super().put_new(key, data)

    failing = Failing(store._root)
    duties = begin(root, failing, "p", ())
    failing.failing = True
    with pytest.raises(StoreTransientError):
        duties.publish_next()
    duties.forget()
    failing.failing = False
    assert duties.publish_next().manifest.step == 1
    assert in_store(store) == {"checkpoint-1"}


def test_what_was_asked_for_in_the_store_goes_from_the_disk_and_the_store(begin, root, store, make):
    old, _ = make(root, "checkpoint-1", 1), make(root, "checkpoint-2", 2)
    duties = begin(root, store, "p", ())
    while duties.publish_next():
        pass
    removal_requests.request_stored_removal(store, "p", old.manifest.digest)
    duties.delete_stored()
    duties.delete_local()
    assert on_disk(root) == ["checkpoint-2"]
    assert in_store(store) == {"checkpoint-2"}
    assert removal_requests.requested_stored_removals(store, "p").keys() == frozenset()
    duties.delete_stored()
    assert not requested_local_removals(root)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_no_rule_deletes_what_is_protected_until_it_is_unprotected(begin, root, store, make, where):
    old, _ = make(root, "checkpoint-1", 1), make(root, "checkpoint-2", 2)
    duties = begin(root, store, "p", ())
    while duties.publish_next():
        pass
    if where == "disk":
        protection.protect_local(old.path, Protection())
    else:
        stored_protect.protect_stored(store, "p/checkpoint-1", Protection())
    request_local_removal(root, old.manifest.digest)
    duties.delete_stored()
    duties.delete_local()
    assert "checkpoint-1" in in_store(store)
    assert ("checkpoint-1" in on_disk(root)) == (where == "disk")
    if where == "disk":
        protection.unprotect_local(old.path)
    else:
        stored_protect.unprotect_stored(store, "p/checkpoint-1")
    duties.delete_stored()
    duties.delete_local()
    assert on_disk(root) == ["checkpoint-2"]
    assert in_store(store) == {"checkpoint-2"}


def test_nothing_is_remembered_of_what_is_gone_from_the_store(root, store, make):
    """A worker lives for weeks, and may see a hundred thousand checkpoints come and go."""
    duties = SmallDiskTasks(root, store, "p", ())
    try:
        for generation in (1, 2):
            make(root, "last", generation, generation=generation)
            duties.publish_next()
        old = make(root, "checkpoint-3", 3)
        duties.publish_next()
        make(root, "checkpoint-4", 4)
        duties.publish_next()
        request_local_removal(root, old.manifest.digest)
        duties.delete_local()
        duties.delete_stored()
        assert in_store(store) == {"last@2", "checkpoint-4"}
        assert duties.newest("checkpoint-3") is None
        assert duties.newest("last").generation == 2
    finally:
        duties.leave()
