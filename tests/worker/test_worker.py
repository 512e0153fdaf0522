"""A real worker process: it publishes, deletes, is asked, fails, and never loses anything."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import bt_lightning
from bt_lightning.errors import (
    CheckpointNotFoundError,
    DrainTimeoutError,
    InvalidSettingError,
    StorePermanentError,
    StoreTransientError,
    WorkerDiedError,
)
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.worker.restart_limit import MAX_DEATHS, WINDOW_S, RestartLimit
from bt_lightning.worker.trainer_queries import TrainerQueries
from bt_lightning.worker_messages import CheckStore, Fetch, ListStore, WorkerConfig

NONE = frozenset()
SLACK_S = 12.0
"""What a start and one call may take on a loaded machine; a hanging store takes 60 s and more."""


def end_of(worker, timeout_s=20.0):
    """Wait for the end of the process by itself; its exit code."""
    worker._process.join(timeout_s)
    return worker._process.exitcode


# publishing


def test_everything_committed_is_published_newest_first(scene):
    """The newest is what a resume needs: if the machine dies meanwhile, it should be there."""
    scene.make(1, 10, 9)
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: len(scene.published) == 3)
    assert scene.published == ["checkpoint-10", "checkpoint-9", "checkpoint-1"]
    assert scene.in_store() == scene.names(1, 9, 10)
    assert scene.failures == []
    assert all(event.size > 0 for event in scene.events)


def test_nothing_is_published_or_deleted_before_begin(scene):
    """Until the run has decided what it resumes from, everything must stay."""
    old, _ = scene.make(1, 2)
    request_local_removal(scene.root, old.digest)
    worker = scene.worker()
    worker.wake()
    for _ in range(3):
        assert worker.ask(ListStore(), 20) == []
        worker.wake()
    assert scene.in_store() == set()
    assert scene.on_disk() == scene.names(1, 2)


def test_a_checkpoint_committed_later_is_published_after_a_wake(scene):
    worker = scene.worker()
    worker.begin(NONE)
    for step in (1, 2, 3):
        (manifest,) = scene.make(step)
        worker.wake()
        scene.watch(worker, lambda step=step: len(scene.published) == step)
        assert scene.events[-1].digest == manifest.digest
    assert scene.in_store() == scene.names(1, 2, 3)


def test_a_drain_returns_when_all_is_published_even_without_a_wake(scene):
    worker = scene.worker()
    worker.begin(NONE)
    scene.make(*range(1, 6))
    worker.drain(30)
    assert scene.in_store() == scene.names(*range(1, 6))
    scene.events += worker.poll()
    assert sorted(scene.published) == sorted(scene.names(*range(1, 6)))
    worker.drain(30)
    assert worker.poll() == []


def test_each_event_is_handed_out_once_also_beside_questions(scene):
    """`ask` reads the same pipe: what it meets on the way must not be lost."""
    scene.make(*range(1, 6))
    worker = scene.worker()
    worker.begin(NONE)
    while len(worker.ask(ListStore(), 20)) < 5:
        pass
    worker.drain(30)
    scene.events += worker.poll()
    assert len(scene.published) == 5
    assert worker.poll() == []


def test_a_later_generation_replaces_the_older_in_the_store(scene):
    scene.make(1)
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    scene.make(1, generation=2)
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-1@2"}


def test_without_a_store_a_drain_returns_at_once(scene):
    scene.make(1)
    worker = scene.worker(url=None)
    worker.begin(NONE)
    worker.drain(30)
    assert worker.poll() == []


def test_wakes_never_wait_however_many_there_are(scene):
    """Invariant 8: the training thread calls this, and a stopped worker reads nothing."""
    worker = scene.worker()
    worker.begin(NONE)
    assert worker.ask(ListStore(), 20) == []
    os.kill(worker.pid, signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(20_000):
        worker.wake()
    assert time.monotonic() - started < SLACK_S
    assert worker.poll() == []
    os.kill(worker.pid, signal.SIGCONT)
    scene.make(1)
    worker.drain(30)
    assert scene.in_store() == scene.names(1)


# deleting


def test_a_requested_removal_is_carried_out_on_the_disk_and_in_the_store(scene):
    old, _ = scene.make(1, 2)
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    assert scene.in_store() == scene.names(1, 2)
    request_local_removal(scene.root, old.digest)
    worker.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(2)
    assert requested_local_removals(scene.root).keys() == frozenset()


def test_the_only_checkpoint_is_not_deleted_until_something_newer_is_committed(scene):
    """Invariant 4."""
    (old,) = scene.make(1)
    request_local_removal(scene.root, old.digest)
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(1)
    scene.make(2)
    worker.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(2)


def test_an_old_copy_that_is_to_go_is_not_sent_again_when_it_is_the_last_on_the_disk(scene):
    """The disk keeps it for want of a newer one; the store has one, and does not want it."""
    old, new = scene.make(1, 2)
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    shutil.rmtree(scene.root / new.checkpoint_id)  # to make room
    request_local_removal(scene.root, old.digest)
    worker.drain(10)
    worker.poll()
    worker.drain(10)
    assert scene.on_disk() == scene.names(1)
    assert scene.in_store() == scene.names(2)
    assert worker.poll() == []


def test_a_pinned_checkpoint_is_never_deleted(scene):
    old, _ = scene.make(1, 2)
    worker = scene.worker()
    worker.begin(frozenset({old.digest}))
    worker.drain(30)
    request_local_removal(scene.root, old.digest)
    scene.make(3)
    worker.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(1, 2, 3)


def test_pins_survive_the_death_of_the_worker(scene):
    """A revived worker that forgot them would delete what the run resumed from."""
    old, _ = scene.make(1, 2)
    worker = scene.worker()
    worker.begin(frozenset({old.digest}))
    worker.drain(30)
    request_local_removal(scene.root, old.digest)
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    scene.watch(worker, lambda: worker.pid != first)
    worker.drain(30)
    assert scene.on_disk() == scene.in_store() == scene.names(1, 2)


def test_removals_are_carried_out_on_the_disk_while_the_store_is_down(scene):
    """A store that is away for a day must not fill the disk."""
    scene.folder.write_text("a file where the store should be")
    old, _ = scene.make(1, 2)
    request_local_removal(scene.root, old.digest)
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: scene.on_disk() == scene.names(2))
    assert requested_local_removals(scene.root).keys() == {old.digest}, (
        "the store may hold it still"
    )


# questions


def test_a_store_that_can_be_used_is_checked_and_left_clean(scene):
    worker = scene.worker()
    assert worker.ask(CheckStore(), 20) is None
    assert not [path for path in scene.folder.rglob("*") if path.is_file()]


def test_two_checks_of_one_store_at_once_disturb_nobody(scene):
    """A worker that was left by a kill checks it beside that of the next run."""
    config = WorkerConfig(
        root=str(scene.root), store_url=scene.folder.as_uri(), prefix=scene.prefix, drain_s=1.0
    )
    answers = [TrainerQueries(config, None) for _ in range(2)]
    failed = []

    def check(one):
        for _ in range(200):
            answer = one.answer(CheckStore())
            if answer.error is not None:
                failed.append(answer.error)

    threads = [threading.Thread(target=check, args=[one]) for one in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_store_that_cannot_be_used_says_why(scene):
    scene.folder.write_text("x")
    worker = scene.worker()
    with pytest.raises(StorePermanentError, match="store"):
        worker.ask(CheckStore(), 20)
    with pytest.raises(InvalidSettingError, match="nonsense"):
        scene.worker(url="nonsense://x").ask(CheckStore(), 20)


def test_what_is_in_the_store_is_listed_and_fetched(scene, tmp_path):
    (manifest,) = scene.make(1)
    first = scene.worker()
    first.begin(NONE)
    first.drain(30)
    first.stop()
    shutil.rmtree(scene.root)
    scene.root.mkdir()
    worker = scene.worker()
    (stored,) = worker.ask(ListStore(), 20)
    assert (stored.folder, stored.manifest) == ("checkpoint-1", manifest.to_bytes())
    path = worker.ask(Fetch("checkpoint-1", "checkpoint-1"), 20)
    assert path == str(scene.root / "checkpoint-1")
    assert verify(scene.root / "checkpoint-1") == manifest
    with pytest.raises(CheckpointNotFoundError):
        worker.ask(Fetch("nothing", "nothing"), 20)


@pytest.mark.parametrize("target", ["../escaped", "{}/absolute", "a/../../escaped"])
def test_a_fetch_cannot_leave_the_checkpoint_directory(scene, target, tmp_path):
    """Invariant 6: the target is an id out of a manifest that somebody else may have written."""
    scene.make(1)
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    before = set(tmp_path.iterdir())
    with pytest.raises((InvalidSettingError, ValueError)):
        worker.ask(Fetch("checkpoint-1", target.format(tmp_path)), 20)
    assert set(tmp_path.iterdir()) == before


def test_a_question_that_gets_no_answer_ends_in_time_and_says_so(scene, silent):
    """Invariant 9. The worker that hangs is ended; the next question starts another."""
    worker = scene.worker(url="s3://bucket/x", options=silent)
    started = time.monotonic()
    with pytest.raises(StoreTransientError, match="no answer to CheckStore within"):
        worker.ask(CheckStore(), 1.5)
    assert time.monotonic() - started < 1.5 + SLACK_S
    assert worker.pid is None


# deaths


def test_a_killed_worker_is_revived_and_nothing_is_lost(scene):
    """Invariant 7: what it had to do is read off the disk."""
    scene.make(*range(1, 16))
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: scene.published)
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    scene.watch(worker, lambda: worker.pid != first)
    worker.drain(30)
    assert scene.in_store() == scene.names(*range(1, 16))
    scene.events += worker.poll()
    assert scene.failures == []
    worker.stop()
    there = [path for path in scene.folder.rglob("*") if f"{DOT_DIR}-logs" not in path.parts]
    left = [path for path in there if path.name.startswith((".", "bt_publ"))]
    assert left == [], "the revived worker did not sweep"


def test_a_worker_killed_during_a_drain_is_revived_by_the_drain(scene):
    scene.make(*range(1, 6))
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: scene.published)
    os.kill(worker.pid, signal.SIGKILL)
    worker.drain(30)
    assert scene.in_store() == scene.names(*range(1, 6))


def test_a_worker_killed_during_a_question_is_asked_again(scene):
    worker = scene.worker()
    assert worker.ask(ListStore(), 20) == []
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.ask(ListStore(), 20) == []


def test_a_worker_that_dies_again_and_again_is_reported_once(scene):
    """Without a limit a broken machine would start processes for ever. Invariants 5 and 9."""
    worker = scene.worker()
    worker.begin(NONE)

    def kill_and_poll():
        pid = worker.pid
        os.kill(pid, signal.SIGKILL)
        scene.watch(worker, lambda: worker.pid != pid)

    for _ in range(4):
        kill_and_poll()
    with pytest.raises(WorkerDiedError, match="exit code -9"):
        kill_and_poll()
    assert worker.pid is None
    assert worker.poll() == []


def test_deaths_with_commits_between_them_end_nothing(scene):
    """A job of weeks may lose more than five workers, to whatever kills processes there."""
    worker = scene.worker()
    worker.begin(NONE)
    for step in range(1, 8):
        pid = worker.pid
        os.kill(pid, signal.SIGKILL)
        scene.watch(worker, lambda pid=pid: worker.pid != pid)
        scene.make(step)
        worker.wake()
        scene.watch(worker, lambda step=step: f"checkpoint-{step}" in scene.published)
    noted = [event for event in read_events(scene.root) if event["event"] == "worker_died"]
    assert len(noted) == 7
    assert all("exit code -9, death 1 of 5" in event["error"] for event in noted)


def test_deaths_that_are_far_apart_end_nothing_and_a_report_begins_anew(tmp_path):
    now = [0.0]
    deaths = RestartLimit(tmp_path, lambda: now[0])
    for _ in range(20):
        now[0] += WINDOW_S / 4
        deaths.add("it died")
    now[0] += WINDOW_S
    for _ in range(2):
        for _ in range(MAX_DEATHS - 1):
            now[0] += WINDOW_S / MAX_DEATHS - 1
            deaths.add("it died")
        with pytest.raises(WorkerDiedError):
            deaths.add("it died")
    for _ in range(3):
        for _ in range(MAX_DEATHS - 1):
            deaths.add("it died")
        deaths.reset()


def test_sigterm_makes_the_worker_hurry_and_stay_for_what_the_trainer_still_saves(scene):
    """A platform that stops a job sends it to every process: the newest save is yet to come."""
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    pid = worker.pid
    scene.make(*range(1, 8))
    os.kill(pid, signal.SIGTERM)  # and no wake: the trainer may be lost before it sends one
    scene.watch(worker, lambda: scene.in_store() == scene.names(*range(1, 8)))
    os.kill(pid, signal.SIGTERM)
    scene.make(8)
    worker.drain(30)
    assert worker.pid == pid
    assert scene.in_store() == scene.names(*range(1, 9))


def test_a_worker_that_got_sigterm_leaves_when_its_trainer_is_gone(scene):
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    os.kill(worker.pid, signal.SIGTERM)
    scene.make(1)
    worker._conn.close()
    assert end_of(worker) == 0
    assert scene.in_store() == scene.names(1)


def test_sigint_is_ignored(scene):
    """Ctrl-C reaches the whole group: the trainer decides what happens, not the worker."""
    worker = scene.worker()
    assert worker.ask(ListStore(), 20) == []
    pid = worker.pid
    os.kill(pid, signal.SIGINT)
    worker.begin(NONE)
    scene.make(1)
    worker.drain(30)
    assert worker.pid == pid
    assert scene.in_store() == scene.names(1)


def test_the_end_of_the_pipe_lets_the_worker_finish_and_leave(scene):
    scene.make(*range(1, 8))
    worker = scene.worker()
    worker.begin(NONE)
    worker._conn.close()
    assert end_of(worker) == 0
    assert scene.in_store() == scene.names(*range(1, 8))


def test_the_end_of_the_pipe_sends_also_what_was_committed_just_before_it(scene):
    """SIGKILL of the trainer between its commit and its wake."""
    worker = scene.worker()
    worker.begin(NONE)
    worker.drain(30)
    scene.make(1)
    worker._conn.close()
    assert end_of(worker) == 0
    assert scene.in_store() == scene.names(1)


def test_a_worker_that_was_never_told_to_begin_leaves_with_its_parent(scene):
    scene.make(1)
    worker = scene.worker()
    worker.ask(ListStore(), 20)
    worker._conn.close()
    assert end_of(worker) == 0
    assert scene.in_store() == set()


TRAINER = """
import os, sys
from bt_lightning.worker_messages import ListStore, WorkerConfig
from bt_lightning.worker.worker_handle import Worker

assert os.environ.pop("ONCE", None), "the worker ran the user's script again"
config = WorkerConfig(
    root=sys.argv[1], store_url=sys.argv[2], prefix=sys.argv[3], drain_s=30.0
)
worker = Worker(config)
worker.ask(ListStore(), 60)
worker.begin(frozenset())
print(worker.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_trainer_leaves_a_worker_that_finishes_and_no_process(scene):
    """From stdin and without a main guard, as in a notebook; a real SIGKILL of the parent."""
    scene.make(*range(1, 11))
    home = str(Path(bt_lightning.__file__).parents[1])
    trainer = subprocess.run(
        [sys.executable, "-", str(scene.root), scene.folder.as_uri(), scene.prefix],
        input=TRAINER,
        env={**os.environ, "PYTHONPATH": home, "ONCE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(trainer.stdout)).wait(30)
    assert not psutil.pid_exists(int(trainer.stdout)) or (
        psutil.Process(int(trainer.stdout)).status() == psutil.STATUS_ZOMBIE
    )
    assert scene.in_store() == scene.names(*range(1, 11))
    assert trainer.stderr == ""


# deadlines


@pytest.fixture
def closed_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def options_of(port):
    endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    return {"key": "AKIAOFTHETESTS", "secret": "s3kr3t-of-the-tests", "client_kwargs": endpoint}


@pytest.fixture
def silent():
    """Options of an S3 endpoint that takes connections and never answers."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(64)
        yield options_of(holder.getsockname()[1])


def test_a_worker_leaves_by_its_deadline_when_the_store_refuses(scene, closed_port):
    scene.make(1)
    worker = scene.worker("s3://bucket/x", drain_s=0.5, options=options_of(closed_port))
    worker.begin(NONE)
    worker._conn.close()
    started = time.monotonic()
    assert end_of(worker) is not None
    assert time.monotonic() - started < 0.5 + 5 + SLACK_S


def test_a_worker_leaves_by_its_deadline_when_the_store_hangs(scene, silent):
    """Invariant 9: a client that waits for an answer must not keep a container alive."""
    scene.make(1)
    worker = scene.worker("s3://bucket/x", drain_s=0.1, options=silent)
    worker.begin(NONE)
    worker._conn.close()
    started = time.monotonic()
    assert end_of(worker, 0.1 + 5 + SLACK_S) is not None
    assert time.monotonic() - started < 0.1 + 5 + SLACK_S


def test_a_worker_that_hangs_in_a_question_leaves_by_its_deadline(scene, silent):
    """Its loop is inside the call to the store, and does not see the end of the pipe."""
    from bt_lightning.worker.worker_process import EXIT_DEADLINE

    worker = scene.worker("s3://bucket/x", drain_s=0.1, options=silent)
    worker.start()
    worker._conn.send(ListStore())
    worker._conn.close()
    started = time.monotonic()
    assert end_of(worker, 0.1 + 5 + SLACK_S) == EXIT_DEADLINE
    assert time.monotonic() - started < 0.1 + 5 + SLACK_S


def test_a_drain_ends_at_its_deadline_and_names_what_waits_and_why(scene, closed_port):
    scene.make(1, 2)
    worker = scene.worker("s3://bucket/x", options=options_of(closed_port))
    worker.begin(NONE)
    started = time.monotonic()
    with pytest.raises(DrainTimeoutError) as caught:
        worker.drain(0.5)
    assert time.monotonic() - started < 0.5 + SLACK_S
    text = str(caught.value)
    assert "checkpoint-1" in text
    assert "checkpoint-2" in text
    assert "s3://bucket/x" in text
    assert "BT_CHECKPOINT_DIR" in text
    assert "s3kr3t" not in text


def test_a_drain_of_a_hanging_store_ends_too(scene, silent, monkeypatch):
    from bt_lightning.worker import worker_handle

    monkeypatch.setattr(worker_handle, "_EXIT_S", 1.0)
    scene.make(1)
    worker = scene.worker("s3://bucket/x", options=silent)
    worker.begin(NONE)
    started = time.monotonic()
    with pytest.raises(DrainTimeoutError, match="not everything reached the store"):
        worker.drain(0.2)
    assert time.monotonic() - started < 1.2 + SLACK_S
    worker.stop()
    assert worker.pid is None


def test_stop_ends_the_process_and_may_be_called_twice(scene):
    worker = scene.worker()
    worker.stop()
    worker.begin(NONE)
    pid = worker.pid
    worker.stop()
    worker.stop()
    worker.kill()
    assert not psutil.pid_exists(pid)


# failures


def test_a_permanent_failure_is_reported_exactly_once(scene):
    """Invariant 5: with its cause, and not again at every step of the training."""
    scene.folder.write_text("a file where the store should be")
    scene.make(1)
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: scene.failures)
    for _ in range(3):
        worker.wake()
        with pytest.raises(DrainTimeoutError, match="checkpoint-1"):
            worker.drain(5)
    scene.events += worker.poll()
    assert len(scene.failures) == 1
    assert str(scene.folder) in scene.failures[0]


def test_work_goes_on_when_the_cause_of_a_failure_is_mended(scene):
    scene.folder.write_text("a file where the store should be")
    scene.make(1, 2)
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: scene.failures)
    scene.folder.unlink()
    worker.wake()
    scene.watch(worker, lambda: len(scene.published) == 2)
    worker.drain(30)
    assert scene.in_store() == scene.names(1, 2)
    assert len(scene.failures) == 1
    noted = [event for event in read_events(scene.root) if event["event"] == "store_failed"]
    assert [(event["permanent"], event["error"]) for event in noted] == [(True, scene.failures[0])]


def test_a_second_failure_after_a_success_is_reported_again(scene):
    scene.folder.write_text("x")
    scene.make(1)
    worker = scene.worker()
    worker.begin(NONE)
    scene.watch(worker, lambda: len(scene.failures) == 1)
    scene.folder.unlink()
    worker.drain(30)
    shutil.rmtree(scene.folder)
    scene.folder.write_text("x")
    scene.make(2)
    worker.wake()
    scene.watch(worker, lambda: len(scene.failures) == 2)


def test_a_failure_that_another_try_cures_is_never_reported(scene):
    """Invariant 5. A real S3 endpoint that comes up only after the first tries."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        scene.make(1)
        worker = scene.worker("s3://bucket/x", options=options_of(port))
        worker.begin(NONE)
        with pytest.raises(DrainTimeoutError, match="s3://bucket/x"):
            worker.drain(0.5)
    with scene.s3_at(port):
        worker.drain(30)
        (stored,) = worker.ask(ListStore(), 20)
        assert stored.folder == "checkpoint-1"
    scene.events += worker.poll()
    assert scene.published == ["checkpoint-1"]
    assert scene.failures == []


def test_a_store_that_cannot_be_opened_is_a_failure_and_no_death(scene, closed_port):
    """Some clients connect when they are made; FTP is one that comes with fsspec."""
    scene.make(1)
    worker = scene.worker(f"ftp://127.0.0.1:{closed_port}/x")
    worker.begin(NONE)
    with pytest.raises(DrainTimeoutError, match="checkpoint-1"):
        worker.drain(1)


def test_a_damaged_checkpoint_does_not_keep_the_others_from_the_store(scene):
    """Its file lost some bytes on the disk; newest first, it stands before all others."""
    scene.make(1, 2, 3)
    (scene.root / "checkpoint-3" / "model.safetensors").write_bytes(b"short")
    worker = scene.worker()
    worker.begin(NONE)
    with contextlib.suppress(DrainTimeoutError):
        worker.drain(5)
    assert scene.in_store() == scene.names(1, 2)
    worker.ask(ListStore(), 20)
    scene.events += worker.poll()
    assert len(scene.failures) == 1
    assert "checkpoint-3" in scene.failures[0]


# two workers


def test_the_second_worker_of_a_directory_waits_for_the_first(scene, tmp_path):
    """An earlier run's worker may still drain: two at once would publish and delete crosswise."""
    scene.make(1)
    first = scene.worker()
    first.begin(NONE)
    scene.watch(first, lambda: scene.published)
    other = tmp_path / "other"
    second = scene.worker(url=other.as_uri())
    second.begin(NONE)
    for _ in range(3):
        assert second.ask(ListStore(), 20) == []
        assert second.poll() == []
    first.stop()
    scene.events.clear()
    scene.watch(second, lambda: scene.published)
    assert scene.in_store(other) == scene.names(1)


def test_the_lock_of_a_killed_worker_is_free_at_once(scene):
    scene.make(1)
    first = scene.worker()
    first.begin(NONE)
    scene.watch(first, lambda: scene.published)
    os.kill(first.pid, signal.SIGKILL)
    second = scene.worker()
    second.begin(NONE)
    second.drain(20)


def test_workers_of_two_directories_do_not_wait_for_each_other(scene, tmp_path):
    scene.make(1)
    first = scene.worker()
    first.begin(NONE)
    scene.watch(first, lambda: scene.published)
    (tmp_path / "root2").mkdir()
    second = scene.worker((tmp_path / "store2").as_uri(), root=tmp_path / "root2")
    second.begin(NONE)
    second.drain(20)


# what a worker is


@pytest.mark.usefixtures("spawned_workers")
def test_a_worker_loads_neither_torch_nor_lightning(scene):
    """3 s and 310 MB for each rank, and a CUDA context in the worst case."""
    worker = scene.worker()
    worker.begin(NONE)
    worker.ask(ListStore(), 20)
    with Path(f"/proc/{worker.pid}/maps").open() as maps:
        loaded = {line.rsplit("/", 1)[-1].strip() for line in maps if "/" in line}
    assert not {name for name in loaded if "torch" in name or "cuda" in name}
    code = (
        "import sys, bt_lightning.worker.worker_process\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    home = str(Path(bt_lightning.__file__).parents[1])
    modules = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": home}, text=True
    ).split()
    assert "bt_lightning" in modules
    forbidden = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy", "click"}
    assert not forbidden & set(modules)


@pytest.mark.usefixtures("spawned_workers")
def test_no_secret_is_in_the_command_line_or_the_environment_of_a_worker(scene, closed_port):
    """Invariant 10: `ps` shows both to every user of the machine."""
    secret = "s3kr3t-that-ps-must-not-show"
    options = {**options_of(closed_port), "secret": secret}
    worker = scene.worker("s3://bucket/x", options=options)
    with pytest.raises(Exception, match="s3://bucket/x") as caught:
        worker.ask(CheckStore(), 20)
    assert secret not in repr(caught.value)
    process = psutil.Process(worker.pid)
    assert secret not in " ".join(process.cmdline())
    environ = process.environ()
    assert secret not in " ".join(environ.values())
    allowed = {"LC_CTYPE", "COLUMNS", "LINES"}  # set by C libraries, behind os.environ
    assert set(environ) <= set(os.environ) | allowed


def test_a_worker_gives_way_to_the_training_process(scene):
    worker = scene.worker()
    worker.ask(ListStore(), 20)
    assert psutil.Process(worker.pid).nice() > psutil.Process().nice() or os.nice(0) >= 10


def test_a_wake_is_heard_in_a_process_with_more_than_1024_open_files(scene):
    """select(2) knows no descriptor beyond 1023, and a lost wake is a checkpoint not published."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[1] != resource.RLIM_INFINITY and limit[1] < 2000:
        pytest.skip("this machine allows no more files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, limit[1]))
    files = [open(os.devnull) for _ in range(1100)]  # noqa: SIM115, PTH123
    try:
        worker = scene.worker()
        worker.begin(frozenset())
        scene.make(1)
        worker.wake()
        assert worker._conn.fileno() > 1023
        assert worker._conn.poll(20), "nothing was published"
        worker.stop()
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_two_runs_of_one_job_do_not_write_into_each_other(scene, tmp_path):
    """The second is told at once, and publishes when the first has ended."""
    scene.make(1)
    first = scene.worker()
    first.begin(NONE)
    scene.watch(first, lambda: scene.published)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(scene.root / "checkpoint-1", tmp_path / "elsewhere" / "checkpoint-2")
    scene.root = tmp_path / "elsewhere"
    scene.make(3)
    second = scene.worker()
    second.begin(NONE)
    scene.watch(second, lambda: scene.failures)
    assert f"is written to by the process {first.pid} on " in scene.failures[0]
    assert scene.in_store() == {"checkpoint-1"}
    first.stop()
    second.drain(30)
    assert scene.in_store() == scene.names(1, 3)


def test_a_directory_knows_the_job_that_was_sent_from_it(scene):
    """Whoever lists it later, without the run's variables, is told the run's own job id."""
    worker = scene.worker()
    worker.begin(frozenset())
    scene.watch(worker, (scene.root / DOT_DIR / "job-name.json").exists)
    assert DirectoryCheckpoints(scene.root).job == "j"
    assert DirectoryCheckpoints(scene.root).project == "p"
