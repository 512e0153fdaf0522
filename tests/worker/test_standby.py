"""A standby worker publishes while no trainer's does, and makes room for one at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bt_lightning
from bt_lightning.errors import DrainTimeoutError
from bt_lightning.localdir import file_locks
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, lease_folder
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.lease import Holder
from bt_lightning.worker.commit_lock import wait_for_commits
from bt_lightning.worker.publisher_lock import PublisherLock
from bt_lightning.worker_messages import ListStore

pytestmark = pytest.mark.matrix

NONE = frozenset()


def holders(scene):
    """The processes whose leases lie in the store."""
    store = LocalStore(scene.folder)
    found = [store.read(info.key) for info in store.list(lease_folder(scene.prefix))]
    return [Holder.from_bytes(data).pid for data in found if data is not None]


@pytest.fixture
def standby(scene):
    """A standby worker that has published what there was."""
    worker = scene.worker(standby=True)
    worker.begin(NONE)
    scene.make(1)
    scene.eventually(lambda: scene.in_store() == scene.names(1))
    return worker


def trainer(scene):
    worker = scene.worker()
    worker.begin(NONE)
    return worker


def test_a_standby_publishes_what_nobody_told_it_of(scene, standby):
    scene.make(2)
    scene.eventually(lambda: scene.in_store() == scene.names(1, 2))
    assert holders(scene) == [standby.pid]


def test_a_standby_makes_room_for_a_trainers_worker_and_resumes_when_that_is_killed(scene, standby):
    normal = trainer(scene)
    normal.drain(30)
    scene.make(2)
    normal.wake()
    scene.watch(normal, lambda: scene.published == ["checkpoint-2"])
    assert holders(scene) == [normal.pid]
    assert standby.poll()[0].checkpoint_id == "checkpoint-1"
    assert standby.poll() == []

    os.kill(normal.pid, signal.SIGKILL)
    scene.make(3, 4)
    standby.drain(30)
    assert scene.in_store() == scene.names(1, 2, 3, 4)
    assert holders(scene) == [standby.pid]


def test_a_drain_of_a_standby_waits_for_the_trainers_worker_that_still_publishes(scene, standby):
    normal = trainer(scene)
    normal.drain(30)  # it has the directory now: else the standby may publish all of them
    scene.make(*range(2, 8))
    normal.wake()
    scene.watch(normal, lambda: scene.published)
    normal._conn.close()  # the trainer is gone: its worker drains, then leaves
    standby.drain(60)
    assert scene.in_store() == scene.names(*range(1, 8))
    assert normal._process.exitcode == 0 or not normal._process.is_alive()


def test_a_drain_of_a_standby_ends_at_its_deadline_when_the_trainers_worker_stays(scene, standby):
    normal = trainer(scene)
    normal.drain(30)
    os.kill(normal.pid, signal.SIGSTOP)
    scene.make(2)
    with pytest.raises(DrainTimeoutError, match="another worker holds the directory"):
        standby.drain(0.5)
    os.kill(normal.pid, signal.SIGKILL)
    standby.drain(30)
    assert scene.in_store() == scene.names(1, 2)


def test_when_both_are_killed_the_next_goes_on(scene, standby):
    normal = trainer(scene)
    normal.drain(30)
    scene.make(2, 3)
    os.kill(normal.pid, signal.SIGKILL)
    os.kill(standby.pid, signal.SIGKILL)
    again = trainer(scene)
    again.drain(30)
    assert scene.in_store() == scene.names(1, 2, 3)
    assert holders(scene) == [again.pid]


def many_files(scene, count):
    def describe(entries):
        return Manifest(
            checkpoint_id="checkpoint-9",
            generation=1,
            step=9,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    files = {f"part-{n:04}": lambda n=n: [b"%d" % n * 100] for n in range(count)}
    return commit(scene.root / "checkpoint-9", scene.root, files, describe)


def test_a_standby_stops_between_two_files_and_what_it_sent_is_not_sent_again(scene, standby):
    """A trainer that starts must not wait for 100 GB that somebody else sends."""
    normal = scene.worker()
    assert normal.ask(ListStore(), 20)
    manifest = many_files(scene, 500)
    place = scene.folder / scene.prefix / "checkpoint-9"
    scene.eventually((place / "part-0003").exists)
    os.kill(standby.pid, signal.SIGSTOP)
    names = sorted(path.name for path in place.iterdir() if path.name.startswith("part-"))
    assert len(names) < 500
    before = {name: (place / name).stat().st_ino for name in names}
    normal.begin(NONE)
    scene.eventually(lambda: not free(scene.root / DOT_DIR / "worker.want"))
    os.kill(standby.pid, signal.SIGCONT)
    scene.watch(normal, lambda: scene.published)
    assert scene.published == ["checkpoint-9"]
    assert scene.events[-1].digest == manifest.digest
    assert len(list(place.glob("part-*"))) == 500
    after = {name: (place / name).stat().st_ino for name in names}
    assert after == before, "what the standby had sent was sent again"
    assert holders(scene) == [normal.pid]
    assert [event.checkpoint_id for event in standby.poll()] == ["checkpoint-1"]


def free(path):
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_standby_deletes_only_when_no_trainer_can_be_resuming(scene, standby):
    """Which checkpoint a starting trainer is about to choose, its own worker alone is told."""
    old, _ = scene.make(2, 3)
    scene.eventually(lambda: scene.in_store() == scene.names(1, 2, 3))
    request_local_removal(scene.root, old.digest)
    scene.make(4)
    scene.eventually(lambda: scene.in_store() == scene.names(1, 2, 3, 4))
    assert scene.on_disk() == scene.names(1, 2, 3, 4)
    standby.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(1, 3, 4)
    assert requested_local_removals(scene.root).keys() == NONE
    again = scene.make(5)[0]
    request_local_removal(scene.root, again.digest)
    scene.make(6)
    scene.eventually(lambda: "checkpoint-6" in scene.in_store())
    assert "checkpoint-5" in scene.on_disk()


def test_a_new_run_does_not_wait_for_the_commits_of_a_standby(scene, standby):
    """It commits none, and lives as long as the job."""
    assert wait_for_commits(scene.root, 0.0)


def test_of_two_standbys_one_works(scene, standby):
    other = scene.worker(standby=True)
    other.begin(NONE)
    scene.make(2)
    scene.eventually(lambda: scene.in_store() == scene.names(1, 2))
    assert holders(scene) == [standby.pid]
    standby.stop()
    scene.make(3)
    scene.eventually(lambda: scene.in_store() == scene.names(1, 2, 3))
    assert holders(scene) == [other.pid]


def test_a_standby_keeps_out_where_a_file_system_has_no_locks(tmp_path, monkeypatch):
    """There it could never tell whether a trainer's worker publishes beside it."""

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(file_locks.fcntl, "flock", no_locks)
    assert PublisherLock(tmp_path, standby=False).acquire()
    assert not PublisherLock(tmp_path, standby=True).acquire()


def test_a_trainers_turn_comes_after_the_standbys_and_no_standbys_before_it(tmp_path):
    first, normal, second = (PublisherLock(tmp_path, standby=flag) for flag in (True, False, True))
    assert first.acquire()
    assert not first.wanted()
    assert not normal.acquire()
    assert first.wanted()
    first.release()
    assert not second.acquire()
    assert not first.acquire()
    assert normal.acquire()
    assert not normal.wanted()
    normal.release()
    assert second.acquire()


def test_a_worker_is_started_without_torch(scene):
    """The job runner has no use for it, and its import takes seconds."""
    code = (
        "import sys\n"
        "from bt_lightning.worker_messages import WorkerConfig\n"
        "from bt_lightning.worker.worker_handle import Worker\n"
        "worker = Worker(WorkerConfig(root=sys.argv[1], store_url=sys.argv[2], prefix=sys.argv[3],"
        " drain_s=30.0, standby=True))\n"
        "worker.begin(frozenset())\n"
        "worker.drain(30)\n"
        "worker.stop()\n"
        "print(sorted({'torch', 'lightning', 'numpy'}.intersection(sys.modules)))\n"
    )
    scene.make(1)
    home = str(Path(bt_lightning.__file__).parents[1])
    printed = subprocess.check_output(
        [sys.executable, "-c", code, str(scene.root), scene.folder.as_uri(), scene.prefix],
        env={**os.environ, "PYTHONPATH": home},
        text=True,
        timeout=100,
    )
    assert printed == "[]\n"
    assert scene.in_store() == scene.names(1)
