"""What truss sends of examples/baseten is whole: `bt-lightning run` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "baseten"
TRAINING = """
import os
from pathlib import Path

Path(os.environ["BT_CHECKPOINT_DIR"], "result.json").write_text(os.environ["BT_TRAINING_JOB_ID"])
"""
"""In place of the real one: there is no torch beside truss. tests/examples trains."""


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # as truss names ignored files
def test_what_truss_sends_runs_to_its_end(tmp_path):
    pytest.importorskip("truss_train", reason="truss is not installed; `nox -s truss` has it")
    from truss_train.deployment import archive_dir
    from truss_train.loader import import_training_project

    with import_training_project(FOLDER / "config.py") as project:
        name = project.name
    with archive_dir(FOLDER) as archive, tarfile.open(archive.name) as sent:
        sent.extractall(tmp_path)  # no filter: Python 3.10.0 to 3.11.3 have none
    files = {"config.py", "run.sh", "train.py"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == files
    (tmp_path / "train.py").write_text(TRAINING)
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
    (result,) = (tmp_path / "store").rglob("result.json")
    assert result.read_text() == "j"
