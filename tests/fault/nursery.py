"""Trainings of one script, each told by a JSON object what to do, as processes that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.fork_server import script_environ

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fork_server import ForkServer

LIMIT_S = 60.0
_OTHERS_S = 5.0
"""How long the other ranks go on after one was killed."""
_LOOK_S = 0.005


class Nursery:
    """Starts the script with a command, on one rank or several of one process group."""

    def __init__(self, fork_server: ForkServer, script: Path) -> None:
        self._fork_server, self._script = fork_server, script
        self._ranks: list[subprocess.Popen[bytes]] = []

    def start_ranks(self, ranks: int = 1, port: int = 0, **command: object) -> list[int]:
        """Start a training; what its ranks say goes to the file `<journal>.err`."""
        self._ranks = []
        for rank in range(ranks):
            more = _variables(rank, ranks, port) if ranks > 1 else {}
            with open(f"{command['journal']}.err", "ab") as errors:  # noqa: PTH123 - a string
                self._ranks.append(
                    self._fork_server.popen(
                        [sys.executable, str(self._script), json.dumps(command)],
                        group=self._ranks[0].pid if self._ranks else 0,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        env=script_environ(more),
                    )
                )
        return [process.pid for process in self._ranks]

    def start(self, **command: object) -> int:
        (pid,) = self.start_ranks(**command)
        return pid

    def status(self) -> int:
        """How the training that was started last ended, negative for a signal."""
        (code,) = self.statuses()
        return code

    def statuses(self) -> list[int]:
        """How its ranks ended, in their order; a run that does not end within the limit is a hang.

        As a launcher does, it ends the other ranks when one was killed: nobody else tells them.
        """
        until, killed_at = time.monotonic() + LIMIT_S, None
        while None in (codes := [process.poll() for process in self._ranks]):
            if any(code is not None and code < 0 for code in codes):
                killed_at = killed_at or time.monotonic()
            if killed_at is not None and time.monotonic() > killed_at + _OTHERS_S:
                self._kill()
            if time.monotonic() > until:
                self._kill()
                pytest.fail(f"hung for {LIMIT_S} s")
            time.sleep(_LOOK_S)
        return codes

    def _kill(self) -> None:
        for process in self._ranks:
            process.kill()

    def close(self) -> None:
        """Leave nothing of a training when a test fails."""
        self._kill()
        for process in self._ranks:
            process.wait(LIMIT_S)


def _variables(rank: int, ranks: int, port: int) -> dict[str, Any]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
