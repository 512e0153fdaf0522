"""What a command starts goes its own ways: sessions, daemons, orphans; and what comes between."""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil

from bt_lightning.path_layout import DOT_DIR


def test_a_daemon_of_the_command_ends_with_it(runner):
    out, _ = runner(
        "--", "sh", "-c", "setsid sh -c 'trap : TERM; sleep 1000 & wait; wait' & echo $!"
    )
    assert not psutil.pid_exists(int(out))


def test_an_orphan_that_ends_is_buried(runner):
    """kill -0 finds a process that nobody buried, as an init that reaps nothing would leave it."""
    line = "one=$(sh -c 'sleep 0.1 >&2 & echo $!'); while kill -0 $one 2>&-; do sleep 0.02; done"
    runner("--", "sh", "-c", line)


def test_sigusr1_reaches_who_waits_for_it_wherever_and_no_one_else(runner, gate):
    """As under torchrun: its agent has no handler, and its processes have their own sessions."""
    line = f"trap 'echo usr1; exit 3' USR1; {gate.arrive}; while :; do sleep 0.05; done"
    (runner.path / "training.sh").write_text(line)
    agent = (
        "import subprocess as s, sys;"
        "sys.exit(s.call(['sh', 'training.sh'], start_new_session=True))"
    )
    process = runner.start("--job-id", "j", "--", sys.executable, "-c", agent)
    gate.reached()
    process.send_signal(signal.SIGUSR1)
    assert runner.end(process, 3)[0] == "usr1\n"


def test_ctrl_z_stops_the_command_as_well_until_the_shell_goes_on(runner, gate):
    line = f"echo $$ > pid; {gate.arrive}; {gate.wait}; echo on"
    process = runner.start("--", "sh", "-c", line, preexec_fn=os.setpgrp)
    gate.reached()
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    command = psutil.Process(int((runner.path / "pid").read_text()))
    while command.status() != psutil.STATUS_STOPPED:
        os.sched_yield()
    process.send_signal(signal.SIGCONT)
    gate.open()
    assert runner.end(process, 0)[0] == "on\n"


def test_a_reader_of_its_messages_that_went_away_ends_no_job(runner, gate):
    line = (
        '[ "$BT_RETRY_COUNT" -ge 1 ] && exec touch done;'
        f" exec 2>&-; {gate.arrive}; {gate.wait}; exit 3"
    )
    process = runner.start("--job-id", "j", "--retries", "1", "--", "sh", "-c", line)
    gate.reached()
    process.stderr.close()
    gate.open()
    assert process.wait(60) == 0
    assert (runner.path / "done").exists()
    assert runner.record()["status"] == "COMPLETED"
    process.stdout.close()


def test_signals_before_the_command_end_the_job_or_nothing(runner, gate, tmp_path):
    """The second runner waits to see whether the first, of another machine, lives."""
    words = ("--store", tmp_path / "store", "--job-id", "j")
    first = runner.start(*words, "--dir", "one", "--", "sh", "-c", f"{gate.arrive}; {gate.wait}")
    gate.reached()
    second = runner.start(*words, "--dir", "two", "--", "sh", "-c", "echo ran")
    while "Waiting" not in second.stderr.readline():
        pass
    second.send_signal(signal.SIGUSR1)
    second.send_signal(signal.SIGTERM)
    out, _ = runner.end(second, 143)
    assert not out
    gate.open()
    runner.end(first, 0)


def test_what_a_failed_command_says_of_a_preemption_is_a_failure_still(runner):
    """torchrun tells one process of a training to end when the other has died, and ends with 1."""
    event = json.dumps({"event": "preempted", "at": 1})
    folder = f"$BT_CHECKPOINT_DIR/{DOT_DIR}"
    line = f"mkdir -p {folder}; echo '{event}' >> {folder}/events.jsonl; exit 1"
    runner("--job-id", "j", "--", "sh", "-c", line, code=1)
    assert [one["outcome"] for one in runner.record()["attempts"]] == ["failed"]


def test_a_disk_that_the_command_fills_at_once_keeps_its_small_files_going(
    runner, small_disk, tmp_path
):
    """The worker begins when nothing can be written down any more."""
    root = small_disk(1 << 20)
    line = "cd $BT_CHECKPOINT_DIR; echo x > result.json; dd if=/dev/zero of=big bs=64k; exit 0"
    _, err = runner("--store", "./store", "--dir", root, "--job-id", "j", "--", "sh", "-c", line)
    assert "Traceback" not in err
    (sent,) = (tmp_path / "store").rglob("result.json")
    assert sent.read_text() == "x\n"


KILLED = """
import os, signal
from pathlib import Path

from bt_lightning.localdir.commit import commit
from bt_lightning.manifest import Manifest
from bt_lightning.worker_messages import WorkerConfig
from bt_lightning.worker.worker_handle import Worker

root = Path(os.environ["BT_CHECKPOINT_DIR"])
facts = dict(checkpoint_id="c-1", generation=1, step=1, epoch=0)
made = "2030-01-01T00:00:00+00:00"
commit(root / "c-1", root, {"f": lambda: [b"x"]}, lambda files: Manifest(
    files=files, created_at=made, **facts))
os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"  # nobody is there
worker = Worker(WorkerConfig(root=str(root), store_url="s3://b/x", prefix="p", drain_s=60))
worker.start()
worker.begin(frozenset())
while Path(f"/proc/{worker.pid}/comm").read_text() != "bt-worker\\n":
    os.sched_yield()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_worker_of_a_killed_training_is_spared(runner):
    """It may be just committing the last checkpoint, and has a deadline of its own."""
    (runner.path / "killed.py").write_text(KILLED)
    line = f"exec {sys.executable} killed.py > out 2>&1"  # the worker keeps what it inherits open
    runner("--", "sh", "-c", line, code=137)
    worker = psutil.Process(int((runner.path / "out").read_text().split()[0]))
    assert worker.name() == "bt-worker"
    worker.kill()
    worker.wait(30)
