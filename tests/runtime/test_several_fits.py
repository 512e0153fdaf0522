"""Scripts with several fits under `bt-lightning run`, killed and started again by it.

`tests/plugin/test_several_fits.py` has every row of the table; here is one of each kind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.matrix

SCRIPT = Path(__file__).parents[1] / "plugin" / "several_fits.py"
KINDS = {"folds": "2:2", "stages": "one:1", "search": "1:2"}
"""Script -> where it kills itself; the search fits all trials again, the others skip."""
LIMIT_S = 300
BY_ITSELF = """
import os, runpy, sys
script, *folders = sys.argv[1:]
sys.path.insert(0, os.path.dirname(script))
for folder in folders:
    os.makedirs(folder)
    os.chdir(folder)
    sys.argv = [script, os.path.basename(folder)]
    runpy.run_path(script, run_name="__main__")
"""


def test_each_fit_of_a_job_that_was_killed_goes_on_with_what_is_its_own(runner, tmp_path):
    """All at once, and beside them what is right: what they come to without us."""
    jobs = {}
    for kind, kill in KINDS.items():
        (tmp_path / kind).mkdir()
        words = ("--dir", "ck", "--retries", "1", "--", sys.executable, SCRIPT, kind)
        runner.path = tmp_path / kind
        jobs[kind] = runner.start("--job-id", kind, *words, env={"KILL": kill})
    folders = [tmp_path / "right" / kind for kind in KINDS]
    plain = [sys.executable, "-c", BY_ITSELF, SCRIPT, *folders]
    subprocess.run(list(map(str, plain)), check=True, timeout=LIMIT_S)
    for kind, job in jobs.items():
        runner.end(job, 0, LIMIT_S)
        own, right = (
            json.loads((folder / kind / "results.json").read_text())
            for folder in (tmp_path, tmp_path / "right")
        )
        assert own == right, kind
        record = json.loads((tmp_path / kind / "ck/.bt_lightning/job.json").read_text())
        ended = [(one["outcome"], one["signal"]) for one in record["attempts"]]
        assert ended == [("failed", 9), ("done", None)]
