"""Starts the loops of these tests, on one rank or several."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.fork_server import script_environ

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fork_server import ForkServer


@pytest.fixture(scope="session")
def run_ranks(fork_server: ForkServer) -> Callable[..., list[list[str]]]:
    """Runs a script to its end: `run_ranks(script, *words, ranks=1, code=0)`.

    `code`: the exit status of every rank; or `codes`, one of each.
    """
    return partial(_run_ranks, fork_server)


def _run_ranks(
    server: ForkServer,
    script: Path,
    *words: object,
    ranks: int = 1,
    code: int = 0,
    codes: list[int] | None = None,
) -> list[list[str]]:
    """What each rank printed, line by line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {  # as torchrun tells them
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    started = [
        server.popen(
            [sys.executable, str(script), *map(str, words)],
            env=script_environ({**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=90) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == (codes or [code] * ranks), said
    return [out.splitlines() for out, _ in said]
