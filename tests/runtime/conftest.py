"""Real runners: processes of the command line, in a directory of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

RUN = (sys.executable, "-m", "bt_lightning", "run")
LIMIT_S = 60


class Runner:
    """Starts `bt-lightning run` in `path`; what is left of it is killed at the end of the test."""

    def __init__(self, path):
        self.path = path
        self.started = []

    def start(self, *words, env=None, **options):
        process = subprocess.Popen(
            [*RUN, *map(str, words)],
            cwd=self.path,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.started.append(process)
        return process

    def __call__(self, *words, code=0, env=None):
        return self.end(self.start(*words, env=env), code)

    def end(self, process, code, limit_s=LIMIT_S):
        out, err = process.communicate(timeout=limit_s)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return out, err

    def record(self, job="j"):
        path = self.path / "bt_checkpoints" / job / ".bt_lightning" / "job.json"
        return json.loads(path.read_text())


@pytest.fixture
def runner(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("BT_")]:
        monkeypatch.delenv(name)
    made = Runner(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LIMIT_S)


class Gate:
    """Two named pipes: a command says that it is there, and waits until it may go on."""

    def __init__(self, path):
        self.here, self.go = path / "here", path / "go"
        os.mkfifo(self.here)
        os.mkfifo(self.go)
        self.arrive = f"echo x > {self.here}"
        self.wait = f"read _ < {self.go}"

    def reached(self):
        """Wait for the command."""
        assert self.here.read_text() == "x\n"

    def open(self):
        """Let it go on."""
        self.go.write_text("x\n")


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)
