"""Files that belong to no checkpoint, sent by a real worker: kills, stores that are down."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from bt_lightning.errors import DrainTimeoutError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job

pytestmark = pytest.mark.matrix

NONE = frozenset()


def write(scene, path, data=b"x"):
    file = scene.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def stored(scene, folder=None):
    """Path -> bytes of the files of the store that belong to no checkpoint."""
    folder = folder or scene.folder
    listing = list_job(LocalStore(folder), scene.prefix)
    return {path: (folder / scene.prefix / path).read_bytes() for path in listing.job_files()}


def begun(scene, **more):
    worker = scene.worker(files=Patterns(), **more)
    worker.begin(NONE)
    return worker


def test_files_are_sent_without_a_word_and_all_at_a_drain(scene):
    write(scene, "logs/metrics.csv", b"1")
    worker = begun(scene)
    scene.eventually(lambda: stored(scene) == {"logs/metrics.csv": b"1"})
    write(scene, "logs/metrics.csv", b"22")
    write(scene, "results.json", b"{}")
    scene.make(1)
    worker.drain(30)
    assert stored(scene) == {"logs/metrics.csv": b"22", "results.json": b"{}"}
    assert scene.in_store() == scene.names(1)
    scene.events += worker.poll()
    assert scene.failures == []


def test_without_the_setting_no_file_is_sent(scene):
    write(scene, "a")
    worker = scene.worker()
    worker.begin(NONE)
    scene.make(1)
    worker.drain(30)
    assert scene.in_store() == scene.names(1)
    assert stored(scene) == {}


def test_patterns_choose(scene):
    for path in ("a.json", "b.bin", "logs/c.json"):
        write(scene, path)
    worker = scene.worker(files=Patterns(("**/*.json",), ("logs/**",)))
    worker.begin(NONE)
    worker.drain(30)
    assert set(stored(scene)) == {"a.json"}


def test_when_the_trainer_is_killed_its_worker_sends_what_is_there(scene):
    worker = begun(scene)
    worker.drain(30)
    write(scene, "last words", b"!")
    worker._conn.close()
    worker._process.join(30)
    assert stored(scene) == {"last words": b"!"}


def test_a_standby_finishes_when_trainer_and_worker_are_killed(scene):
    standby = begun(scene, standby=True)
    normal = begun(scene)
    normal.drain(30)
    write(scene, "a", b"1")
    os.kill(normal.pid, signal.SIGKILL)
    write(scene, "b", b"2")
    standby.drain(30)
    assert stored(scene) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_that_is_killed_over_a_file_sends_it_whole(scene, seed):
    """Whatever was there before stays there until the whole of the new one is."""
    worker = begun(scene)
    file = write(scene, "large.bin", b"0" * 1000)
    worker.drain(30)
    data = os.urandom(1024) * 1024 * 24
    write(scene, ".new", data).rename(file)
    part = scene.folder / scene.prefix / ".large.bin.part"
    scene.eventually(lambda: part.exists() and part.stat().st_size > seed * 8_000_000)
    os.kill(worker.pid, signal.SIGKILL)
    assert stored(scene)["large.bin"] in {b"0" * 1000, data}
    worker.drain(60)
    assert stored(scene) == {"large.bin": data}
    assert not part.exists()


def test_a_store_that_comes_back_gets_everything(scene):
    """A real S3 server; one file goes in one request, one in parts."""
    from bt_lightning.store.open_store import open_store

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
        options = {"key": "AKIAOFTHETESTS", "secret": "s3kr3t", "client_kwargs": endpoint}
        small = write(scene, "an odd + name, \u00e9 = 100% of it/a&b?#.txt")
        large = write(scene, "large.bin", os.urandom(1024) * 1024 * 70)
        write(scene, "empty", b"")
        worker = begun(scene, url="s3://bucket/x", options=options)
        with pytest.raises(DrainTimeoutError, match=r"large\.bin"):
            worker.drain(1)
    with scene.s3_at(port):
        worker.drain(60)
        store = open_store("s3://bucket/x", options)
        found = list_job(store, scene.prefix).job_files()
        names = [file.relative_to(scene.root).as_posix() for file in (small, large)]
        assert found == {names[0]: 1, names[1]: large.stat().st_size, "empty": 0}
        for file, name in zip((small, large), names, strict=True):
            data = memoryview(bytearray(found[name]))
            store.read_into(f"{scene.prefix}/{name}", 0, data)
            assert data == file.read_bytes()
    scene.events += worker.poll()
    assert scene.failures == []


def test_a_file_that_cannot_be_stored_is_told_once_and_the_drain_names_it(scene):
    write(scene, "good")
    write(scene, "folder", b"a file where the store has a folder")
    (scene.folder / scene.prefix / "folder").mkdir(parents=True)
    worker = begun(scene)
    for _ in range(2):
        with pytest.raises(DrainTimeoutError, match=r"on disk: folder\."):
            worker.drain(30)
    assert set(stored(scene)) == {"good"}
    scene.events += worker.poll()
    (event,) = scene.events
    assert event.of_a_file
    assert "folder" in event.error


def test_a_committed_checkpoint_goes_first(scene, tmp_path):
    for number in range(2000):
        write(scene, f"many/{number}")
    worker = begun(scene)
    scene.eventually(lambda: len(stored(scene)) > 10)
    scene.make(1)
    worker.wake()
    scene.watch(worker, lambda: scene.published)
    assert len(stored(scene)) < 2000
    worker.drain(60)
    assert len(stored(scene)) == 2000


def test_what_changes_all_the_time_does_not_keep_a_run_from_its_end(scene):
    worker = begun(scene)
    log = write(scene, "log")
    code = "import sys, time\nwhile True:\n open(sys.argv[1], 'a').write('x'); time.sleep(0.05)"
    with subprocess.Popen([sys.executable, "-c", code, str(log)]) as writer:
        try:
            scene.eventually(lambda: log.stat().st_size > 3)
            worker.drain(60)
        finally:
            writer.kill()
    assert set(stored(scene)) == {"log"}
    assert log.read_bytes().startswith(stored(scene)["log"])


def test_a_restart_from_a_new_disk_sends_into_no_checkpoint(scene):
    scene.make(1)
    first = begun(scene)
    first.drain(30)
    first.stop()
    shutil.rmtree(scene.root)
    write(scene, "checkpoint-1/model.safetensors", b"of something else")
    write(scene, "checkpoint-1/notes.txt", b"of something else")
    second = begun(scene)
    with pytest.raises(DrainTimeoutError, match=r"checkpoint-1/notes\.txt"):
        second.drain(30)
    kept = (scene.folder / scene.prefix / "checkpoint-1" / "model.safetensors").read_bytes()
    assert kept == b"1" * 1000
    assert scene.in_store() == scene.names(1)
