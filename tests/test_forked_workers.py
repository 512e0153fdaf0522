"""A worker that is forked cannot tell that it was not started."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys

import pytest

from tests.conftest import spawned_context
from tests.forked_workers import forked_context

FACTS = """
import os, resource, signal, sys, threading
from multiprocessing import parent_process, process

def tell(line, ask):
    files = sorted(int(file) for file in os.listdir("/proc/self/fd"))
    line.send({
        "parent": (os.getppid(), parent_process().pid),
        "name": process.current_process().name,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "argv": sys.argv,
        "path": sys.path,
        "main": sys.modules["__main__"].__dict__.get("__file__"),
        "files": [(file, _kind(file)) for file in files if os.path.exists(f"/proc/self/fd/{file}")],
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
        "handlers": [str(signal.getsignal(number)) for number in (2, 10, 12, 13, 15, 17)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": threading.active_count(),
        "streams": [(s.line_buffering, s.encoding, s.isatty()) for s in (sys.stdout, sys.stderr)],
        "flags": list(sys.flags),
        "loaded": [name for name in sys.modules if name.startswith(("torch", "numpy"))],
        "nice": os.nice(0),
    })
    assert ask.recv() == "end"
    sys.exit(7)

def _kind(file):
    return os.readlink(f"/proc/self/fd/{file}").split(":")[0]
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a process of that context says of itself, and how it ended."""
    (tmp_path / "facts_of_a_worker.py").write_text(FACTS)
    monkeypatch.syspath_prepend(tmp_path)
    facts = importlib.import_module("facts_of_a_worker")
    monkeypatch.delitem(sys.modules, facts.__name__)
    monkeypatch.setitem(sys.modules, facts.__name__, facts)

    def told(context, number=None):
        ours, theirs = context.Pipe(duplex=False)
        asked, ask = context.Pipe(duplex=False)
        process = context.Process(target=facts.tell, args=(theirs, asked), daemon=True, name="it")
        process.start()
        theirs.close()
        asked.close()
        found = ours.recv()
        assert process.exitcode is None
        if number:
            os.kill(process.pid, number)
        else:
            ask.send("end")
        process.join(30)
        ours.close()
        ask.close()
        code = process.exitcode
        process.close()
        return found, code

    return told


def test_what_a_worker_sees_is_what_one_sees_that_was_started(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THIS_TEST", "1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        (forked, code), (started, other_code) = told(forked_context()), told(spawned_context())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for name in set(started["environment"]) - set(os.environ):  # of C libraries, behind os.environ
        del started["environment"][name]
    assert forked == started
    assert forked["parent"] == (os.getpid(), os.getpid())
    assert forked["limits"][0][0] == before[0] - 1
    assert code == other_code == 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_as_one_that_was_started(told, number):
    ends = [told(context(), number)[1] for context in (forked_context, spawned_context)]
    assert ends == [-number, -number]
