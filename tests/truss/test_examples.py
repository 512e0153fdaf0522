"""One file for both: examples/config.py is taken by truss, and run by `bt-lightning run`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "examples" / "config.py"
TRAINING = """
import os
from pathlib import Path

Path(os.environ["BT_CHECKPOINT_DIR"], "result.json").write_text(os.environ["BT_TRAINING_JOB_ID"])
"""
"""In place of the real one: there is no torch beside truss. tests/runtime trains."""


def test_the_config_that_truss_takes_runs_to_its_end(tmp_path):
    pytest.importorskip("truss_train", reason="truss is not installed; `nox -s truss` has it")
    from truss_train.loader import import_training_project

    shutil.copy(CONFIG, tmp_path)
    (tmp_path / "train.py").write_text(TRAINING)
    with import_training_project(tmp_path / "config.py") as project:
        name = project.name
    words = ("run", "--store", "./store", "--job-id", "j", "--dir", "ck", "config.py")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
    done = subprocess.run(
        [sys.executable, "-m", "bt_lightning", *words],
        cwd=tmp_path,
        env={**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    record = json.loads((tmp_path / "ck" / ".bt_lightning" / "job.json").read_text())
    assert (record["project"], record["status"]) == (name, "COMPLETED")
    assert record["checkpoint_sync_status"] == "COMPLETED"
    (sent,) = (tmp_path / "store").rglob("result.json")
    assert sent.read_text() == "j"
