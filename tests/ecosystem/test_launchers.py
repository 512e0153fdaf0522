"""Launchers start two ranks, one of which is killed twice: the log is that of an unbroken run.

The launcher is started again as a whole: `torchrun --max-restarts` of torch 2.13 cannot connect the
ranks of a second start over gloo, without us either.
"""

from __future__ import annotations

import contextlib
import csv
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fork_server import script_environ

PLUGIN = Path(__file__).parents[1] / "plugin"
SCRIPT = str(PLUGIN / "logger_job.py")
SRUN = str(Path(__file__).with_name("srun.py"))
LIMIT_S = 240.0
OPTIONS: dict[str, Any] = {
    "saves": {"every_n_train_steps": 2},
    "loggers": ["csv"],
    "strategy": "ddp",
    "devices": 2,
    "max_epochs": 2,
    "val_check_interval": 1.0,
}
KILLED = {"steps": [3, 6]}
LAST = 8
"""Steps of two epochs: each rank has half of the rows."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: list[str], place: Path, env: dict[str, str] | None = None) -> int:
    """Run a launcher to its end; whatever it started ends with it."""
    place.mkdir(exist_ok=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(env or {})}
    with (
        (place / "said").open("ab") as said,
        subprocess.Popen(
            command,
            cwd=place,
            env=script_environ(shared, (PLUGIN,)),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.wait(LIMIT_S)
        finally:
            for one in (*started(process.pid), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def started(pid: int) -> list[psutil.Process]:
    """What a process has started, whatever session it is in."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def torchrun(words: str) -> list[str]:
    how = ["--standalone", "--nproc-per-node", "2"]
    return [sys.executable, "-m", "torch.distributed.run", *how, SCRIPT, words]


def accelerate(words: str) -> list[str]:
    how = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    how += ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
    return [sys.executable, "-m", "accelerate.commands.launch", *how, SCRIPT, words]


def srun(words: str) -> list[str]:
    return [sys.executable, SRUN, "2", sys.executable, SCRIPT, words]


def rows(place: Path) -> list[dict[str, str]]:
    """The rows of the one CSV file, without what this package measures of its own saves."""
    (file,) = place.glob("csv/lightning_logs/*/metrics.csv")
    with file.open(newline="") as stream:
        found = [row for row in csv.DictReader(stream) if not row["checkpoint/step"]]
    return [{k: v for k, v in row.items() if not k.startswith("checkpoint/")} for row in found]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The log of an unbroken run."""
    place = tmp_path_factory.mktemp("whole")
    words = json.dumps({"place": str(place), **OPTIONS})
    assert run(torchrun(words), place) == 0, (place / "said").read_text()
    return rows(place)


@pytest.mark.parametrize("launcher", [torchrun, accelerate, srun])
def test_the_log_is_that_of_an_unbroken_run(
    tmp_path: Path, expected: list[dict[str, str]], launcher: Any
) -> None:
    words = json.dumps({"place": str(tmp_path), **OPTIONS, **KILLED})
    for start in range(len(KILLED["steps"])):
        assert run(launcher(words), tmp_path, {"START": str(start)}) != 0
    code = run(launcher(words), tmp_path, {"START": str(len(KILLED["steps"]))})
    said = (tmp_path / "said").read_text()
    assert code == 0, said
    assert rows(tmp_path) == expected, said
    assert sum(1 for row in expected if row["loss"]) == LAST
