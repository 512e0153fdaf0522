"""Trainings by `transformers`: each process is forked off one that has it loaded."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fault.nursery import Nursery
from tests.fork_server import ForkServer, script_environ

JOB = Path(__file__).with_name("job.py")
SCENARIOS = Path(__file__).with_name("scenarios.py")
LIMIT_S = 100


@pytest.fixture(scope="session")
def hf_server():
    modules = ("transformers.trainer", "transformers.models.llama.modeling_llama")
    server = ForkServer(*modules, "trl.trainer.sft_trainer")
    yield server
    server.close()


@pytest.fixture
def nursery(hf_server):
    found = Nursery(hf_server, JOB)
    yield found
    found.close()


@pytest.fixture
def run(hf_server, tmp_path):
    """Runs a scenario: `run(name, ranks=1, env={}, **arguments)`; what it found, on rank 0.

    `codes`: the statuses with which its ranks end, if they do not find anything.
    """
    return partial(_run, hf_server, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(hf_server, tmp_path_factory):
    """What a training of the Trainer alone ends with: its weights, and steps with an evaluation."""
    known: dict[str, Any] = {}

    def train(ranks: int = 1, **given: Any) -> Any:
        key = json.dumps([ranks, given], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            more = {"folder": folder / "ck", "ours": False, **given}
            known[key] = _run(hf_server, folder, "whole", ranks=ranks, **more)
        return known[key]

    return train


def _run(
    hf_server: ForkServer,
    cwd: Path,
    name: str,
    ranks: int = 1,
    env: dict[str, str] | None = None,
    codes: list[int] | None = None,
    **given: Any,
) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        hf_server.popen(
            [sys.executable, str(SCENARIOS), name, json.dumps(given, default=str)],
            cwd=cwd,
            env=script_environ({**(env or {}), **_of_rank(rank, ranks, port)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == (codes or [0] * ranks), said
    return None if codes else json.loads(said[0][0].splitlines()[-1])


def _of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    if ranks == 1:
        return {}
    return {  # as torchrun tells them
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
