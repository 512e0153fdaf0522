"""What is sent while it is being committed: the bytes of the save, once, and no leftovers."""

from __future__ import annotations

import mmap
import os
import threading
import time
import zipfile

import pytest

from bt_lightning.errors import StoreTransientError
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.manifest import ManifestFacts
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.worker.commit_lock import CommitLock
from bt_lightning.worker.commit_thread import CommitThread
from bt_lightning.worker.commit_to_disk_or_store import ImageCommitter
from bt_lightning.worker.free_disk_space import DiskSpaceMaker
from bt_lightning.worker.part_commits import PartCommits
from bt_lightning.worker.publisher_tasks import PublisherTasks
from bt_lightning.worker.removals_of_saves import RemovalsOfSaves
from bt_lightning.worker_messages import (
    CommitFailed,
    CommitImage,
    Committed,
    FileImage,
    WorkerConfig,
)
from bt_lightning.zip_layout import directory, place_records

MIB = 1024 * 1024
SIZE = 32 * MIB
PREFIX = "p"


class Slow(LocalStore):
    """A distant store that takes the first piece of each large file, and then waits."""

    distant = True

    def __init__(self, root):
        super().__init__(root)
        self.began, self.go_on = threading.Event(), threading.Event()
        self.sent = []
        self.failing = False

    def send(self, source, key, reuse=None):
        self.sent.append(key)
        if source.size > MIB:
            with source.hold(0, min(source.size, source.part_bytes)):
                self.began.set()
                assert self.go_on.wait(30)
        if self.failing:
            self.failing = False
            msg = "the network is gone"
            raise StoreTransientError(msg)
        super().send(source, key, reuse)


class Stage:
    """A committer, the duties of a publisher, and an arena between them, in this process."""

    def __init__(self, tmp_path):
        self.root, self.store = tmp_path / "root", Slow(tmp_path / "store")
        self.root.mkdir()
        self.duties = PublisherTasks(self.root, self.store, PREFIX, ())
        self.sender = None
        self.outcomes, self.committed = [], threading.Event()
        room = DiskSpaceMaker(self.root, None, lambda: None, has_store=False)
        keeper, lock = ImageCommitter(self.root, room, self._offer), CommitLock(self.root)
        config = WorkerConfig(root=str(self.root), store_url=None, prefix=PREFIX, drain_s=30.0)
        self.unwanted = RemovalsOfSaves(self.root)
        parts = PartCommits(config, room, self.unwanted, self._done, lambda: self.store)
        self.committer = CommitThread(config, keeper, parts.writer, lock, self._done)
        descriptor = os.memfd_create("arena")
        os.ftruncate(descriptor, SIZE)
        self.memory = mmap.mmap(descriptor, SIZE)
        self.memory[:] = os.urandom(SIZE)
        self.committer.share(0, descriptor, SIZE)

    def _done(self, outcome):
        if outcome is not None:
            self.outcomes.append(outcome)
            self.committed.set()

    def _offer(self, offer):
        """Send in another thread, as the publisher does."""
        self.sender = threading.Thread(target=self._send, args=[offer])
        self.sender.start()
        assert self.store.began.wait(30), "nothing was sent before the commit"

    def _send(self, offer):
        self.error = None
        try:
            self.duties.send_ahead(offer)
        except StoreTransientError as error:
            self.error = error

    def save(self, number=1, *, zipped=False):
        self.committer.put(
            CommitImage(
                number=number,
                arena=0,
                checkpoint_id="checkpoint-1",
                files=(
                    FileImage(
                        path="model.safetensors",
                        offset=0,
                        size=20 * MIB + 5,
                        content=1,
                        zipped=zipped,
                    ),
                    FileImage(path="trainer.json", offset=24 * MIB, size=77, content=2),
                ),
                facts=ManifestFacts(
                    step=1, epoch=0, created_at=f"2030-01-01T00:00:0{number}+00:00"
                ),
                began=time.time(),
            )
        )
        assert self.committed.wait(30)
        return self.outcomes[-1]

    def end(self):
        self.store.go_on.set()
        self.sender.join()

    def close(self):
        self.store.go_on.set()
        self.duties.leave()
        self.committer.leave()
        self.committer._thread.join()
        self.committer.drop(0)
        self.memory.close()


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_zip_file_is_sent_ahead_with_its_checksums(stage, tmp_path):
    size = 20 * MIB + 5
    around = len(zip_file(1)) - 1
    stage.memory[:size] = zip_file(size - around)
    assert isinstance(stage.save(zipped=True), Committed)
    stage.memory[:] = bytes(SIZE)
    stage.end()
    assert stage.duties.publish_next() is not None
    assert stage.store.sent.count(f"{PREFIX}/checkpoint-1/model.safetensors") == 1
    fetch(stage.store, PREFIX, "checkpoint-1", tmp_path, tmp_path / "back")
    with zipfile.ZipFile(tmp_path / "back" / "model.safetensors") as file:
        assert file.testzip() is None


def zip_file(size):
    """A zip file of one record, without its CRC."""
    (record,) = place_records([(b"x/data", size)], 64)
    return b"".join(
        (
            record.local_header,
            os.urandom(size),
            record.descriptor(),
            directory([record.entry()], record.end),
        )
    )


def test_the_bytes_are_those_of_the_save_though_the_arena_is_used_again(stage, tmp_path):
    """The commit does not wait for the network, and gives the arena back."""
    assert isinstance(stage.save(), Committed)
    stage.memory[:] = bytes(SIZE)
    stage.end()
    assert list_job(stage.store, PREFIX).committed == {}, "seen before it was published"
    assert stage.duties.publish_next() is not None
    stage.duties.delete_begun()
    assert stage.store.sent.count(f"{PREFIX}/checkpoint-1/model.safetensors") == 1
    fetch(stage.store, PREFIX, "checkpoint-1", tmp_path, tmp_path / "back")
    assert verify(tmp_path / "back").digest == verify(stage.root / "checkpoint-1").digest
    assert list_job(stage.store, PREFIX).unfinished == frozenset()


def test_what_was_sent_of_a_save_that_failed_is_deleted(stage, tmp_path, monkeypatch):
    from bt_lightning.localdir import commit

    def refuse(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(commit, "publish_directory", refuse)
    assert isinstance(stage.save(), CommitFailed)
    stage.end()
    stage.duties.delete_begun()
    stage.duties.leave()
    assert list(stage.store.list("")) == []


def test_what_was_sent_of_a_save_that_is_unwanted_by_now_is_deleted(stage):
    outcome = stage.save()
    stage.end()
    newer = stage.duties.outbox()[0].manifest
    assert newer.to_bytes() == outcome.manifest
    stage.committed.clear()
    stage.store.began.clear()
    stage.save(2)
    stage.end()
    assert stage.duties.publish_next() is not None
    request_local_removal(stage.root, newer.digest)
    stage.duties.delete_begun()
    stage.duties.leave()
    assert set(list_job(stage.store, PREFIX).committed) == {"checkpoint-1@2"}
    assert {info.key.split("/")[1] for info in stage.store.list("")} == {"checkpoint-1@2"}


def test_a_store_that_fails_over_it_gets_everything_after_the_commit(stage, tmp_path):
    stage.store.failing = True
    stage.save()
    stage.end()
    assert stage.error is not None
    stage.duties.forget()
    assert stage.duties.publish_next() is not None
    fetch(stage.store, PREFIX, "checkpoint-1", tmp_path, tmp_path / "back")
    verify(tmp_path / "back")


def test_a_store_that_is_a_disk_is_not_written_beside_the_commit(stage):
    stage.store.distant = False
    stage.store.began.set()
    stage.save()
    stage.end()
    assert stage.store.sent == []
