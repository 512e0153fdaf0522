"""A disk that is too small for all checkpoints, or for one: copies go, images are streamed."""

from __future__ import annotations

import mmap
import os
import signal
import time

import pytest

from bt_lightning.errors import DirectoryFullError
from bt_lightning.localdir import protection
from bt_lightning.localdir.disk_space import measure, usage
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.localdir.read_locks import hold_for_reading
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.protection_record import Protection
from bt_lightning.removal_requester import Requester
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.lease import Lease
from bt_lightning.worker.evict_local_copies import Eviction, evict_copies
from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage

pytestmark = pytest.mark.matrix

NONE = frozenset()
MB = 2**20
PREFIX = job_prefix("p", "j", 0)


class Small:
    """Workers on a small disk, images of 2 MB, and a folder elsewhere as the store."""

    size = 2 * MB

    def __init__(self, scene, root) -> None:
        self.scene, self.root = scene, root
        scene.root = root
        self.descriptor = os.memfd_create("arena")
        os.ftruncate(self.descriptor, 8 * MB)
        self.memory = mmap.mmap(self.descriptor, 8 * MB)
        self.memory[:] = os.urandom(8 * MB)
        self.numbers = 0

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)

    def begin(self, pinned=NONE, **options):
        worker = self.scene.worker(**options)
        worker.begin(frozenset(pinned))
        worker.share(0, self.descriptor, 8 * MB)
        return worker

    def job(self, step, name=None, size=None, after=0):
        self.numbers += 1
        return CommitImage(
            number=self.numbers,
            arena=0,
            checkpoint_id=name or f"checkpoint-{step}",
            files=(
                FileImage(
                    path="model.safetensors",
                    offset=4096 * step,
                    size=size or self.size,
                    content=self.numbers,
                ),
            ),
            facts=ManifestFacts(
                step=step,
                epoch=0,
                created_at=f"2030-01-01T00:00:00.{self.numbers:06}+00:00",
            ),
            began=time.time(),
            after=after,
        )

    def save(self, worker, step, **more):
        job = self.job(step, **more)
        worker.commit(job)
        return self.scene.outcome(worker, job.number)

    def safe(self):
        """Ids of what is whole in the store or on the disk."""
        found = set()
        for place in (self.root, self.scene.folder):
            committed, refused, _ = list_committed(place)
            assert not refused
            found |= {verify(c.path).checkpoint_id for c in committed}
        return found

    def events(self, kind):
        return [event for event in read_events(self.root) if event["event"] == kind]


@pytest.fixture
def small(scene, small_disk):
    made = []

    def small(size=7 * MB, kind="tmpfs"):
        made.append(Small(scene, small_disk(size, kind)))
        return made[-1]

    yield small
    for worker in scene.workers:
        worker.kill()
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_twenty_times_the_disk_is_saved_and_all_of_it_is_somewhere(small, kind):
    disk = small(7 * MB, kind)
    worker = disk.begin()
    for step in range(1, 71):
        outcome = disk.save(worker, step)
        assert isinstance(outcome, Committed), outcome.error
    worker.drain(60)
    assert disk.safe() == disk.scene.names(*range(1, 71))
    assert disk.scene.in_store() == disk.scene.names(*range(1, 71))
    assert disk.events("evicted")
    assert not disk.events("refused")
    on_disk = sorted(found.manifest.step for found in list_committed(disk.root)[0])
    assert len(on_disk) >= 2


def test_a_copy_that_a_rule_of_retention_keeps_makes_no_room(small, every_ten):
    disk = small(9 * MB)
    worker = disk.begin(policy=every_ten)
    for step in (8, 9, 10, 11, 12, 13, 14):
        outcome = disk.save(worker, step)
        assert isinstance(outcome, Committed), outcome.error
        worker.drain(60)
    evicted = [event["checkpoint"] for event in disk.events("evicted")]
    assert evicted[:3] == ["checkpoint-8", "checkpoint-9", "checkpoint-11"]
    assert "checkpoint-10" in disk.scene.on_disk()
    assert disk.scene.in_store() == disk.scene.names(*range(8, 15))


def test_a_full_disk_takes_a_request_and_says_that_it_does_not_take_who_asks(small):
    """A person deletes to make room: the worker frees it, and then learns who it was."""
    disk = small(MB, "tmpfs")
    digest = "0" * 32
    request_local_removal(disk.root, "1" * 32)
    filler = disk.root / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2 * MB))
    with pytest.raises(OSError, match="No space"):
        request_local_removal(disk.root, digest, Requester.PERSON)
    assert requested_local_removals(disk.root)[digest] is Requester.TRAINING
    filler.unlink()
    request_local_removal(disk.root, digest, Requester.PERSON)
    request_local_removal(disk.root, digest)
    assert requested_local_removals(disk.root)[digest] is Requester.PERSON


def test_a_checkpoint_larger_than_the_disk_goes_straight_to_the_store(small):
    disk = small(MB)
    worker = disk.begin()
    outcome = disk.save(worker, 1)
    assert isinstance(outcome, Committed)
    assert outcome.streamed
    assert disk.scene.in_store() == {"checkpoint-1"}
    folder = disk.scene.folder / PREFIX / "checkpoint-1"
    assert verify(folder).to_bytes() == outcome.manifest
    written = (folder / "model.safetensors").read_bytes()
    assert written == disk.memory[4096 : 4096 + 2 * MB]
    assert list_committed(disk.root)[0] == []
    (event,) = disk.events("streamed")
    assert (event["checkpoint"], event["bytes"]) == ("checkpoint-1", 2 * MB)
    assert newest_in_store(disk.root).step == 1


def test_the_same_id_streamed_again_is_the_next_generation(small):
    disk = small(MB)
    worker = disk.begin()
    manifests = [
        Manifest.from_bytes(disk.save(worker, step, name="last").manifest, "") for step in (1, 1, 2)
    ]
    assert [m.generation for m in manifests] == [1, 2, 3]
    worker.drain(30)
    assert disk.scene.in_store() == {"last@3"}, "what a newer one replaced goes"


def test_a_generation_counts_on_from_what_the_training_process_knows(small):
    disk = small()
    worker = disk.begin(url=None)
    outcome = disk.save(worker, 1, after=6)
    assert Manifest.from_bytes(outcome.manifest, "").generation == 7


def test_without_a_store_the_save_is_refused_with_its_numbers(small):
    disk = small(5 * MB)
    worker = disk.begin(url=None)
    assert isinstance(disk.save(worker, 1), Committed)
    assert isinstance(disk.save(worker, 2), Committed)
    failed = disk.save(worker, 3)
    assert isinstance(failed, CommitFailed)
    assert isinstance(failed.error, DirectoryFullError)
    free = measure(disk.root, None).free
    assert f"{free:,} of {5 * MB:,} bytes are free" in str(failed.error)
    assert "there is no store" in str(failed.error)
    assert disk.safe() == disk.scene.names(1, 2)
    (event,) = disk.events("refused")
    assert event["checkpoint"] == "checkpoint-3"
    assert event["needed"] >= 2 * MB
    assert isinstance(disk.save(worker, 4, size=4096), Committed), "what fits is saved"


def test_a_budget_is_kept_though_the_volume_has_room(small):
    disk = small(64 * MB)
    worker = disk.begin(budget=6 * MB)
    for step in range(1, 16):
        assert isinstance(disk.save(worker, step), Committed)
        assert usage(disk.root) <= 6 * MB
    worker.drain(30)
    assert disk.safe() == disk.scene.names(*range(1, 16))


def test_other_files_below_the_directory_count_against_the_budget(small):
    disk = small(64 * MB)
    (disk.root / "events.tfevents").write_bytes(bytes(5 * MB))
    worker = disk.begin(budget=6 * MB)
    assert disk.save(worker, 1).streamed


def test_what_is_resumed_from_or_protected_or_read_is_never_evicted(small):
    disk = small(8 * MB)
    first = disk.begin()
    manifests = [Manifest.from_bytes(disk.save(first, step).manifest, "") for step in (1, 2, 3)]
    first.drain(30)
    first.stop()
    protection.protect_local(disk.root / "checkpoint-2", Protection(by="me", why="", at="2030"))
    reader = hold_for_reading(disk.root / "checkpoint-3")
    worker = disk.begin(pinned={manifests[0].digest})
    outcome = disk.save(worker, 4)
    assert outcome.streamed
    assert disk.scene.on_disk() == disk.scene.names(1, 2, 3)
    os.close(reader)
    outcome = disk.save(worker, 5)
    assert not outcome.streamed
    assert outcome.evicted == 1
    assert disk.scene.on_disk() == disk.scene.names(1, 2, 5)


def test_nothing_is_evicted_for_a_checkpoint_that_would_not_fit_all_the_same(small):
    disk = small(5 * MB)
    worker = disk.begin()
    disk.save(worker, 1)
    worker.drain(30)
    assert disk.save(worker, 2, size=6 * MB).streamed
    assert disk.scene.on_disk() == {"checkpoint-1"}


def test_a_copy_whose_checkpoint_the_store_has_lost_stays(small):
    disk = small(5 * MB)
    worker = disk.begin()
    disk.save(worker, 1)
    disk.save(worker, 2)
    worker.drain(30)
    (disk.scene.folder / PREFIX / "checkpoint-1" / "model.safetensors").write_bytes(b"short")
    (disk.scene.folder / PREFIX / "checkpoint-2" / MANIFEST).unlink()
    assert disk.save(worker, 3).streamed
    assert disk.scene.on_disk() == disk.scene.names(1, 2)


@pytest.mark.parametrize("sends", [True, False])
def test_what_waits_for_the_store_is_sent_to_make_room_for_who_has_no_other_way(scene, sends):
    scene.make(1, 2)
    duties = SmallDiskTasks(scene.root, LocalStore(scene.folder), PREFIX, NONE)
    duties.prepare()
    assert duties.evictable() == []  # it has the lease, and all files that it needs
    each, budget = usage(scene.root / "checkpoint-1"), 64 * 1024 + usage(scene.root)
    send = (lambda: duties.publish_next() is not None) if sends else None
    evicted = []
    plan = Eviction(scene.root, budget, each // 2, "checkpoint-3", evicted, more=False, send=send)
    try:
        why = evict_copies(duties, plan, None)
    finally:
        duties.leave()
    if sends:
        assert why == ""
        assert evicted
        assert set(evicted) <= scene.in_store()
    else:
        assert "2 are not in the store yet" in why
        assert not evicted
    assert scene.on_disk() == scene.names(1, 2) - set(evicted)


def test_a_worker_that_lost_its_lease_evicts_and_streams_nothing(small, monkeypatch):
    disk = small(5 * MB)
    worker = disk.begin()
    disk.save(worker, 1)
    disk.save(worker, 2)
    worker.drain(30)
    store = LocalStore(disk.scene.folder)
    other = Lease(store, PREFIX, "another directory", clock=iter((0.0, 1000.0)).__next__)
    with pytest.raises(OSError, match="is written to by"):
        other.take()  # it has seen it once
    other.take()
    try:
        failed = disk.save(worker, 3)
        assert isinstance(failed, CommitFailed)
        assert "is written to by the process" in str(failed.error)
        assert disk.scene.on_disk() == disk.scene.names(1, 2)
    finally:
        other.release()


def test_a_store_that_is_down_fails_the_save_at_once_and_the_next_ones_work_when_it_is_back(small):
    disk = small(5 * MB)
    worker = disk.begin()
    disk.save(worker, 1)
    disk.save(worker, 2)
    worker.drain(30)
    aside = disk.scene.folder.with_name("aside")
    disk.scene.folder.rename(aside)
    disk.scene.folder.write_text("in the way")
    for step in (3, 4):
        failed = disk.save(worker, step)
        assert isinstance(failed, CommitFailed)
        assert "Sending it to the store instead failed" in str(failed.error)
    assert disk.scene.on_disk() == disk.scene.names(1, 2)
    disk.scene.folder.unlink()
    aside.rename(disk.scene.folder)
    worker.drain(60)
    assert isinstance(disk.save(worker, 5), Committed)
    worker.drain(60)
    assert disk.safe() == disk.scene.names(1, 2, 5)


def test_a_worker_killed_over_a_save_that_needs_room_is_replaced_and_makes_it(small):
    disk = small(5 * MB)
    worker = disk.begin()
    disk.save(worker, 1)
    disk.save(worker, 2)
    worker.drain(30)
    os.kill(worker.pid, signal.SIGSTOP)
    job = disk.job(3)
    worker.commit(job)
    os.kill(worker.pid, signal.SIGKILL)
    outcome = disk.scene.outcome(worker, job.number)
    assert isinstance(outcome, Committed), outcome.error
    assert outcome.evicted == 1
    assert disk.safe() == disk.scene.names(1, 2, 3)


def test_what_was_streamed_before_a_kill_is_not_sent_again(small):
    disk = small(MB)
    worker = disk.begin()
    job = disk.job(1)
    worker.commit(job)
    disk.scene.eventually(disk.scene.in_store)
    os.kill(worker.pid, signal.SIGKILL)
    outcome = disk.scene.outcome(worker, job.number)
    assert isinstance(outcome, Committed)
    assert Manifest.from_bytes(outcome.manifest, "").generation == 1
    worker.drain(30)
    assert disk.scene.in_store() == {"checkpoint-1"}
