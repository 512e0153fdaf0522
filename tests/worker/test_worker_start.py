"""Workers of processes that are not like others: SIGCHLD ignored, or a frozen program."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

import bt_lightning

pytestmark = pytest.mark.matrix

WORK = """
import multiprocessing, os, signal, sys
{before}
from bt_lightning.errors import CheckpointError
from bt_lightning.worker_messages import ListStore, WorkerConfig
from bt_lightning.worker.worker_handle import Worker

root = sys.argv[-1]
worker = Worker(
    WorkerConfig(root=root, store_url=f"file://{{root}}/store", prefix="p", drain_s=20)
)
try:
    worker.start()
    worker.begin(frozenset())
    print("listed", worker.ask(ListStore(), 60))
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    worker.await_event(20)
    print("events", worker.poll(), "another", worker.pid != first)
    worker.drain(60)
    second = worker.pid
    worker.stop()
except CheckpointError as error:
    print(type(error).__name__, error)
    sys.exit(1)
print("left", multiprocessing.active_children())
worker.start()
worker.stop(hasty=True)
worker.kill()
"""
ENDED = "listed []\nevents [] another True\nleft []\n"
ENVIRON = {**os.environ, "PYTHONPATH": str(Path(bt_lightning.__file__).parents[1])}


def run(command, tmp_path, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=ENVIRON, **options
    )
    left = [
        process
        for process in psutil.process_iter()
        if str(tmp_path) in " ".join(_words(process)) and process.pid != os.getpid()
    ]
    assert not left
    return done


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def write(tmp_path, before=""):
    script = tmp_path / "script.py"
    script.write_text(WORK.format(before=textwrap.dedent(before)))
    return script


def test_where_sigchld_is_ignored_from_the_start(tmp_path):
    """As daemons and `trap '' CHLD` leave it to what they start."""
    script = write(tmp_path)
    command = ["sh", "-c", f"trap '' CHLD; exec {sys.executable} {script} {tmp_path}"]
    done = run(command, tmp_path)
    assert (done.returncode, done.stdout) == (0, ENDED), done.stderr


@pytest.mark.parametrize(
    "before",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        """
        def bury(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, bury)
        """,
        """
        import threading, time
        def bury():
            while True:
                try:
                    os.wait()
                except ChildProcessError:
                    time.sleep(0.001)
        threading.Thread(target=bury, daemon=True).start()
        """,
    ],
    ids=["ignored", "handler", "thread"],
)
def test_where_the_program_lets_nobody_else_wait_for_its_children(tmp_path, before):
    done = run([sys.executable, write(tmp_path, before), tmp_path], tmp_path)
    assert (done.returncode, done.stdout) == (0, ENDED), done.stderr


FROZEN = """
sys.frozen = True
multiprocessing.set_executable({program!r})
{support}
"""


PROGRAM = """#!/bin/sh
for word; do
    [ "$word" = -c ] && exec {python} "$@"  # as what freezes programs does for Python's own helpers
done
exec {python} {script} "$@"
"""


@pytest.mark.parametrize("supports", [True, False])
def test_a_frozen_program_works_or_says_what_it_lacks(tmp_path, supports):
    """A worker is started by running the program again, which must know that it is one."""
    program = tmp_path / "program"
    # what `multiprocessing.freeze_support` is in a program that was frozen, on every system
    support = (
        "from multiprocessing.spawn import freeze_support; freeze_support()" if supports else ""
    )
    script = write(tmp_path, FROZEN.format(program=str(program), support=support))
    program.write_text(PROGRAM.format(python=sys.executable, script=script))
    program.chmod(0o755)
    done = run([program, tmp_path], tmp_path)
    if supports:
        assert (done.returncode, done.stdout) == (0, ENDED), done.stderr
    else:
        assert done.returncode == 1
        assert "WorkerDiedError" in done.stdout
        assert "multiprocessing.freeze_support()" in done.stdout


FORGOTTEN = """
import sys
from bt_lightning.worker_messages import ListStore, WorkerConfig
from bt_lightning.worker.worker_handle import Worker

root = sys.argv[-1]
worker = Worker(WorkerConfig(root=root, store_url=f"file://{root}/store", prefix="p", drain_s=20))
worker.start()
worker.begin(frozenset())
worker.ask(ListStore(), 60)
raise RuntimeError("of the script")
"""


def test_a_script_that_fails_and_stops_no_worker_ends(tmp_path):
    """`multiprocessing` joins its children at exit, and this one waits for its trainer's end."""
    done = run([sys.executable, "-c", FORGOTTEN, tmp_path], tmp_path)
    assert done.returncode == 1
    assert "of the script" in done.stderr
