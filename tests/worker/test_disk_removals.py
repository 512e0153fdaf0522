"""What may go from the disk goes without the store, by one process at a time, and nothing else."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
import time

import pytest

from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.manifest import ManifestFacts
from bt_lightning.worker.commit_lock import CommitLock
from bt_lightning.worker.disk_removals import DiskRemovals
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage

NONE = frozenset()
MB = 2**20


@pytest.fixture
def silent():
    """Options of an S3 endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        holder.listen(64)
        endpoint = f"http://127.0.0.1:{holder.getsockname()[1]}"
        client = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        yield {"key": "AKIAOFTHETESTS", "secret": "s3kr3t", "client_kwargs": client}


class Arena:
    """Two megabytes of an image, and jobs of it."""

    def __init__(self):
        self.descriptor = os.memfd_create("arena")
        os.ftruncate(self.descriptor, 2 * MB)
        with mmap.mmap(self.descriptor, 2 * MB) as memory:
            memory[:] = os.urandom(2 * MB)
        self.number = 0

    def begin(self, worker, pinned=NONE):
        worker.begin(frozenset(pinned))
        worker.share(0, self.descriptor, 2 * MB)

    def save(self, scene, worker, step):
        return scene.outcome(worker, self.commit(worker, step))

    def commit(self, worker, step):
        self.number += 1
        file = FileImage(path="model.safetensors", offset=0, size=2 * MB, content=self.number)
        created = f"2030-01-01T00:00:{self.number:02}+00:00"
        job = CommitImage(
            number=self.number,
            arena=0,
            checkpoint_id=f"checkpoint-{step}",
            files=(file,),
            facts=ManifestFacts(step=step, epoch=0, created_at=created),
            began=time.time(),
        )
        worker.commit(job)
        return job.number


@pytest.fixture
def arena():
    arena = Arena()
    yield arena
    os.close(arena.descriptor)


def test_what_may_go_goes_while_the_store_hangs(scene, silent):
    old, _ = scene.make(1, 2)
    worker = scene.worker("s3://bucket/x", drain_s=0.1, options=silent)
    worker.begin(NONE)
    request_local_removal(scene.root, old.digest)
    worker.wake()
    scene.eventually(lambda: scene.on_disk() == scene.names(2))


def test_what_may_go_goes_though_an_earlier_runs_worker_still_publishes(scene, silent):
    """It may have half an hour for a store that hangs; the disk has not."""
    old, *_ = scene.make(1, 2, 3)
    earlier = scene.worker("s3://bucket/x", drain_s=60, options=silent)
    earlier.begin(NONE)
    assert earlier.drained(0.3).waiting  # it has the turn to publish, and hangs in it
    earlier._conn.close()
    later = scene.worker("s3://bucket/x", drain_s=0.1, options=silent)
    later.begin(NONE)
    request_local_removal(scene.root, old.digest)
    later.wake()
    scene.eventually(lambda: scene.on_disk() == scene.names(2, 3))
    assert earlier._process.is_alive()


def test_nothing_goes_while_another_runs_worker_may_commit_here(scene):
    """What the run of that one resumed from, and wants gone after it, only its own worker knows."""
    old, _ = scene.make(1, 2)
    request_local_removal(scene.root, old.digest)
    lock, earlier = CommitLock(scene.root), DiskRemovals(scene.root, NONE)
    lock.acquire()
    assert earlier.clear() == 0
    assert DiskRemovals(scene.root, {old.digest}, lock).clear() == 0
    assert scene.on_disk() == scene.names(1, 2)
    lock.release()
    assert earlier.clear() == 1
    assert scene.on_disk() == scene.names(2)


def test_what_had_to_wait_for_another_runs_worker_goes_without_being_asked_again(scene):
    old, _ = scene.make(1, 2)
    request_local_removal(scene.root, old.digest)
    lock = CommitLock(scene.root)
    lock.acquire()
    removals = DiskRemovals(scene.root, NONE, start=True)
    scene.eventually(lambda: removals.idle)
    assert scene.on_disk() == scene.names(1, 2)
    lock.release()
    scene.eventually(lambda: scene.on_disk() == scene.names(2))
    removals.leave()


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_unwanted_by_its_commit_goes_with_the_next_one(scene, arena, when):
    """Also while the training thread has no time to hear of the commit."""
    worker = scene.worker(url=None)
    arena.begin(worker)
    if when == "before":
        os.kill(worker.pid, signal.SIGSTOP)
    first = arena.commit(worker, 1)
    if when == "after":
        scene.eventually(lambda: scene.on_disk() == scene.names(1))
    worker.remove_when_committed(first)
    arena.commit(worker, 2)
    if when == "before":
        os.kill(worker.pid, signal.SIGCONT)
    scene.eventually(lambda: scene.on_disk() == scene.names(2))


def test_what_is_older_than_the_newest_goes_though_that_is_unwanted_too(scene):
    """Training may be one save ahead of the disk for hours: each commit is unwanted as it comes."""
    removals = DiskRemovals(scene.root, NONE)
    for step in range(1, 6):
        (made,) = scene.make(step)
        request_local_removal(scene.root, made.digest)
        removals.clear()
        assert scene.on_disk() == scene.names(step)


def test_what_is_being_sent_goes_last(scene):
    first, second, _ = scene.make(1, 2, 3)
    removals = DiskRemovals(scene.root, NONE)
    for manifest in (first, second):
        request_local_removal(scene.root, manifest.digest)
    with removals.sending(second):
        assert removals.clear() == 1
        assert scene.on_disk() == scene.names(2, 3)
        assert removals.clear(sent=True) == 1
        assert scene.on_disk() == scene.names(3)


def test_what_may_go_goes_before_a_copy_is_evicted(scene, small_disk, arena):
    scene.root = small_disk(7 * MB)
    worker = scene.worker()
    arena.begin(worker)
    for step in (1, 2, 3):
        assert isinstance(arena.save(scene, worker, step), Committed)
    worker.drain(30)
    newest = max((f.manifest for f in list_committed(scene.root)[0]), key=lambda m: m.step)
    (middle,) = [f.manifest for f in list_committed(scene.root)[0] if f.manifest.step == 2]
    assert newest.step == 3
    request_local_removal(scene.root, middle.digest)  # nobody is told
    outcome = arena.save(scene, worker, 4)
    assert isinstance(outcome, Committed)
    assert outcome.evicted == 0
    assert scene.on_disk() == scene.names(1, 3, 4)


def test_the_error_of_a_full_disk_names_what_the_store_said(scene, small_disk, arena):
    scene.root = small_disk(5 * MB)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    client = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    options = {"key": "AKIAOFTHETESTS", "secret": "s3kr3t", "client_kwargs": client}
    worker = scene.worker("s3://bucket/x", drain_s=0.1, options=options)
    arena.begin(worker)
    for step in (1, 2):
        assert isinstance(arena.save(scene, worker, step), Committed)
    failed = arena.save(scene, worker, 3)
    assert isinstance(failed, CommitFailed)
    assert "does not answer" in str(failed.error)
    assert "refused" in str(failed.error) or "Could not connect" in str(failed.error)
    assert scene.on_disk() == scene.names(1, 2)


def test_a_removal_that_the_disk_refuses_is_no_failure_and_is_tried_again(scene):
    old, _ = scene.make(1, 2)
    worker = scene.worker()
    trash = scene.root / ".bt_lightning" / "trash"
    worker.begin(NONE)
    scene.watch(worker, lambda: len(scene.published) == 2)
    trash.rmdir()
    trash.write_text("in the way")
    request_local_removal(scene.root, old.digest)
    worker.wake()
    scene.eventually(lambda: "removal_failed" in events(scene.root))
    assert scene.on_disk() == scene.names(1, 2)
    scene.make(3)
    worker.wake()
    scene.watch(worker, lambda: "checkpoint-3" in scene.published)
    trash.unlink()
    scene.eventually(lambda: scene.on_disk() == scene.names(2, 3))
    assert scene.failures == []
    assert events(scene.root).count("removal_failed") == 1


def events(root):
    return [event["event"] for event in read_events(root)]


def test_a_newer_generation_that_just_took_the_place_is_not_deleted(scene):
    old = scene.make(1)[0]
    new = scene.make(1, generation=2)[0]
    place = scene.root / "checkpoint-1"
    assert not delete_directory(place, scene.root, old.digest)
    assert verify(place) == new
    assert delete_directory(place, scene.root, new.digest)
    assert scene.on_disk() == set()


def test_removals_beside_commits_of_the_same_name_never_take_the_newest(scene):
    """Invariant 2 and 4: whenever anybody looks, the newest generation is there, whole."""
    scene.make(9)
    digests, over = [], threading.Event()

    def remove():
        removals = DiskRemovals(scene.root, NONE)
        while not over.is_set():
            for digest in digests[:-1]:
                request_local_removal(scene.root, digest)
            removals.clear()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for generation in range(1, 60):
            digests += [made.digest for made in scene.make(1, generation=generation)]
            assert verify(scene.root / "checkpoint-1").generation == generation
    finally:
        over.set()
        thread.join(30)


def test_a_name_that_is_gone_by_itself_is_no_failure(scene):
    scene.make(1)
    assert not delete_directory(scene.root / "nowhere", scene.root)
    assert scene.on_disk() == scene.names(1)
