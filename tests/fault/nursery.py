"""A process that imports torch and lightning once, and forks a training for each command."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 60.0


class Nursery:
    """The forking process of a script that answers each line with pids, then with statuses."""

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        assert self._line() == "ready"

    def start_ranks(self, **command: object) -> list[int]:
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return [int(pid) for pid in self._line().split()]

    def start(self, **command: object) -> int:
        (pid,) = self.start_ranks(**command)
        return pid

    def status(self) -> int:
        """How the training that was started last ended; waits for its end."""
        return int(self._line())

    def statuses(self, pids: list[int]) -> list[int]:
        """How the ranks ended; a run that does not end within the limit is a hang."""
        ended, _, _ = select.select([self._process.stdout], [], [], LIMIT_S)
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pids[0], signal.SIGKILL)
            self._line()
            pytest.fail(f"hung for {LIMIT_S} s")
        return [int(status) for status in self._line().split()]

    def _line(self) -> str:
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(LIMIT_S)
        self._process.stdout.close()
