"""Images in an arena are committed by a real worker, whatever is killed, and each of them once."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import time

import psutil
import pytest

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.digest import Hasher, digest_file
from bt_lightning.localdir.direct_io import BLOCK, write_image
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest, verify
from bt_lightning.manifest import ManifestFacts
from bt_lightning.worker.commit_lock import commit_lock, wait_for_commits
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage

NONE = frozenset()
SIZE = 64 * BLOCK


@pytest.fixture
def arena():
    """A memfd with two files of bytes that tell their place."""
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, SIZE)
    with mmap.mmap(descriptor, SIZE) as memory:
        memory[:] = os.urandom(SIZE)
        yield descriptor, memory
    os.close(descriptor)


def job(number, step=1, name=None, content=(1, 2)):
    return CommitImage(
        number=number,
        arena=0,
        checkpoint_id=name or f"checkpoint-{step}",
        files=(
            FileImage(path="model.safetensors", offset=0, size=9 * BLOCK + 5, content=content[0]),
            FileImage(path="sub/trainer.json", offset=10 * BLOCK, size=77, content=content[1]),
        ),
        facts=ManifestFacts(step=step, epoch=0, created_at=f"2030-01-01T00:00:0{number}+00:00"),
        began=time.time(),
    )


def test_an_image_becomes_a_committed_checkpoint_with_its_bytes(scene, arena):
    descriptor, memory = arena
    worker = scene.worker()
    worker.begin(NONE)
    worker.share(0, descriptor, SIZE)
    worker.commit(job(1, step=7))
    event = scene.outcome(worker, 1)
    assert isinstance(event, Committed)
    path = scene.root / "checkpoint-7"
    assert verify(path).to_bytes() == event.manifest
    assert (path / "model.safetensors").read_bytes() == memory[: 9 * BLOCK + 5]
    assert (path / "sub/trainer.json").read_bytes() == memory[10 * BLOCK : 10 * BLOCK + 77]
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-7"}
    kinds = [entry["event"] for entry in read_events(scene.root)]
    assert kinds == ["durable", "published"]


def test_images_that_wait_outlast_their_arena(scene, arena):
    """A trainer that is told to end, and has no time, gives its arenas back and goes."""
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.share(0, arena[0], SIZE)
    os.kill(worker.pid, signal.SIGSTOP)
    for number in (1, 2, 3):
        worker.commit(job(number, step=number, content=(number, number + 3)))
    worker.drop(0)
    os.kill(worker.pid, signal.SIGCONT)
    worker.stop(hasty=True)
    scene.eventually(lambda: scene.on_disk() == scene.names(1, 2, 3))
    for name in scene.names(1, 2, 3):
        verify(scene.root / name)


def test_the_same_id_again_is_the_next_generation(scene, arena):
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.share(0, arena[0], SIZE)
    for number in (1, 2):
        worker.commit(job(number))
        scene.outcome(worker, number)
    assert read_manifest(scene.root / "checkpoint-1").generation == 2


def test_equal_contents_are_linked_and_not_written_twice(scene, arena):
    worker = scene.worker(url=None)
    worker.share(0, arena[0], SIZE)
    worker.begin(NONE)
    worker.commit(job(1))
    worker.commit(job(2, name="last", content=(1, 3)))
    scene.outcome(worker, 2)
    one, other = (scene.root / name / "model.safetensors" for name in ("checkpoint-1", "last"))
    assert one.stat().st_ino == other.stat().st_ino
    verify(scene.root / "last")
    tree = [scene.root / n / "sub/trainer.json" for n in ("checkpoint-1", "last")]
    assert tree[0].stat().st_ino != tree[1].stat().st_ino


def test_a_worker_killed_over_a_commit_is_replaced_and_commits_it(scene, arena):
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.share(0, arena[0], SIZE)
    os.kill(worker.pid, signal.SIGSTOP)
    worker.commit(job(1))
    os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(scene.outcome(worker, 1), Committed)
    verify(scene.root / "checkpoint-1")


def test_what_was_committed_before_a_kill_is_not_committed_again(scene, arena):
    """The worker died between the rename and its word: one save is one generation."""
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.share(0, arena[0], SIZE)
    worker.commit(job(1))
    scene.eventually(lambda: list_committed(scene.root)[0])
    os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(scene.outcome(worker, 1), Committed)
    assert read_manifest(scene.root / "checkpoint-1").generation == 1
    assert [e for e in worker.poll() if isinstance(e, Committed | CommitFailed)] == []


@contextlib.contextmanager
def held_by_another(root):
    """Hold the right to commit, as the worker of an earlier run that has not done so yet."""
    commit_lock(root).parent.mkdir(exist_ok=True)
    with commit_lock(root).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_an_image_is_committed_after_the_trainer_is_gone(scene, arena):
    """The pipe ends with the trainer; what is complete in the arena must not go with it."""
    with held_by_another(scene.root):
        worker = scene.worker(url=None)
        worker.begin(NONE)
        worker.share(0, arena[0], SIZE)
        worker.commit(job(1))
        worker._conn.close()
    worker._process.join(30)
    verify(scene.root / "checkpoint-1")


def test_a_new_run_waits_until_the_worker_of_the_last_one_has_committed(scene, arena):
    """It publishes for longer, which nobody waits for."""
    with held_by_another(scene.root):
        worker = scene.worker("s3://bucket/x", options={"endpoint_url": "http://127.0.0.1:9"})
        worker.begin(NONE)
        worker.share(0, arena[0], SIZE)
        worker.commit(job(1))
        worker._conn.close()
        assert not wait_for_commits(scene.root, 0.05)
        assert not list_committed(scene.root)[0], "it waits no longer than it was told to"
    scene.eventually(lambda: not is_free(scene.root) or list_committed(scene.root)[0])
    assert wait_for_commits(scene.root, 60)
    verify(scene.root / "checkpoint-1")
    assert worker._process.is_alive()


def is_free(root):
    with commit_lock(root).open() as file:
        return try_lock(file.fileno())


def test_a_commit_that_the_disk_refuses_is_told_once_and_the_next_one_works(scene, arena):
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.share(0, arena[0], SIZE)
    soft, hard = psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE)
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (4 * BLOCK, hard))
    worker.commit(job(1))
    event = scene.outcome(worker, 1)
    assert isinstance(event, CommitFailed)
    assert isinstance(event.error, OSError)
    with pytest.raises(CheckpointNotFoundError):
        read_manifest(scene.root / "checkpoint-1")
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    worker.commit(job(2))
    assert isinstance(scene.outcome(worker, 2), Committed)
    assert not list((scene.root / ".bt_lightning" / "tmp").iterdir())


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 1, 2**20, 2**20 + 1, 2**20 + BLOCK])
def test_an_image_of_any_size_is_written_and_described_as_it_is(tmp_path, size):
    memory = mmap.mmap(-1, 2**20 + 4 * BLOCK)
    memory[:] = os.urandom(len(memory))
    end = -(-size // BLOCK) * BLOCK
    view = memoryview(memory)[:end]
    entry = write_image(tmp_path / "file", view, size, Hasher(), lambda found: found.entry("file"))
    assert (tmp_path / "file").read_bytes() == memory[:size]
    assert entry == digest_file(tmp_path / "file", "file")
    view.release()
    memory.close()


def test_a_file_system_without_direct_writes_is_written_all_the_same(tmp_path, monkeypatch):
    from bt_lightning.localdir import direct_io

    real = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(direct_io.os, "open", refusing)
    memory = mmap.mmap(-1, 2**20)
    memory[:] = os.urandom(len(memory))
    with memoryview(memory) as view:
        size = len(memory)
        write_image(tmp_path / "file", view, size, Hasher(), lambda found: found.entry("file"))
    assert (tmp_path / "file").read_bytes() == memory[:]
    memory.close()


def test_an_error_of_the_thread_that_hashes_ends_the_write(tmp_path):
    class Broken(Hasher):
        def update(self, piece):
            raise MemoryError

    view = memoryview(mmap.mmap(-1, BLOCK))
    with pytest.raises(MemoryError):
        write_image(tmp_path / "file", view, BLOCK, Broken(), lambda found: found.entry("file"))
