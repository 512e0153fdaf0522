"""The job of examples/baseten, on this machine: it trains, is killed, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.examples.example_runs import EXAMPLES, Example
from tests.fork_server import script_environ

pytestmark = pytest.mark.matrix

TRAINING = Example(EXAMPLES / "baseten" / "train.py")
WORDS = ("--store", "./store", "--job-id", "j", "--dir", "ck", "--retries", "1")
KILL_AT = "step 200:"


@pytest.mark.timeout(200)
def test_the_folder_trains_here_and_a_killed_attempt_goes_on(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "baseten", tmp_path, dirs_exist_ok=True)
    lines, python = [], Path(sys.executable)
    with (tmp_path / "stderr").open("w") as told:
        runner = subprocess.Popen(
            [python, "-m", "bt_lightning", "run", *WORDS, "config.py"],
            cwd=tmp_path,
            env=script_environ({"PATH": f"{python.parent}:{os.environ['PATH']}"}),
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            start_new_session=True,
        )
        with runner:
            assert runner.stdout is not None
            for line in runner.stdout:
                lines.append(line.strip())
                if line.startswith(KILL_AT) and len(lines) == 4:
                    training(runner).kill()
    assert runner.returncode == 0, (tmp_path / "stderr").read_text()
    assert lines[4] != lines[0], "it began again"
    assert TRAINING.matches(list(dict.fromkeys(lines))), lines
    record = json.loads((tmp_path / "ck/.bt_lightning/job.json").read_text())
    assert [one["outcome"] for one in record["attempts"]] == ["failed", "done"]
    assert (record["status"], record["newest_step"]) == ("COMPLETED", 300)
    assert record["checkpoint_sync_status"] == "COMPLETED"
    kept = {path.parent.name for path in (tmp_path / "store").rglob("bt_manifest.json")}
    assert kept == {f"checkpoint-{step}" for step in range(30, 301, 30)}


def training(runner: subprocess.Popen[str]) -> psutil.Process:
    """The process of train.py, which run.sh started."""
    (found,) = (
        process
        for process in psutil.Process(runner.pid).children(recursive=True)
        if process.cmdline()[1:] == ["train.py"]
    )
    return found
