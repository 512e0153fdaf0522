"""Below `bt-lightning run` the callback joins each Trainer, without a change of the script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.runtime import job_spec_and_environment
from tests.fork_server import script_environ

pytestmark = pytest.mark.matrix

STARTUP = Path(job_spec_and_environment.__file__).with_name("startup")
SCRIPT = Path(__file__).with_name("unaware.py")
LOADED = """
import sys
tops = {name.partition(".")[0] for name in sys.modules}
print(sorted(tops & {"bt_lightning", "torch", "other"}))
"""


def started(code: str, *places: Path, **env: str) -> str:
    """What a new Python prints, with these folders in its path."""
    found = {"PYTHONPATH": os.pathsep.join(map(str, places)), "PATH": os.environ["PATH"], **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=found, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.timeout(200)
def test_a_script_that_knows_nothing_of_us_is_saved_and_resumed(undisturbed, tmp_path):
    wanted = undisturbed()["digest"]
    root, store = tmp_path / "ck", tmp_path / "store"
    words = ["--store", store, "--dir", root, "--job-id", "j", "--project", "p", "--retries", "1"]
    # torchrun-like launchers hand the variables on; `save_steps` of the script decides
    command = [sys.executable, SCRIPT, "given"]
    done = subprocess.run(
        [sys.executable, "-m", "bt_lightning", "run", *map(str, [*words, "--", *command])],
        cwd=tmp_path,
        env=script_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("begins", "ends"))]
    assert said == ["begins at 0", "begins at 4", f"ends with 8 {wanted}"]
    assert not (tmp_path / "given").exists()
    found = list_committed(store)[0]
    assert sorted(one.manifest.step for one in found) == [2, 4, 6, 8]


def test_a_start_of_python_costs_nothing_and_hides_nothing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import other\n")
    (tmp_path / "other.py").write_text("")
    assert started(LOADED, STARTUP, tmp_path, BT_LIGHTNING="1") == "['other']"
    assert started(LOADED, STARTUP, BT_LIGHTNING="1") == "[]"
    code = (
        "import sys; print([type(one).__name__ for one in sys.meta_path if '_Watch' in str(one)])"
    )
    assert started(code, STARTUP) == "[]", "outside of a job nothing is watched"


def test_a_module_that_is_no_trainer_is_found_by_others(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("")
    code = "import transformers, json; print(transformers.__file__)"
    found = started(code, STARTUP, tmp_path, BT_LIGHTNING="1")
    assert found == str(tmp_path / "transformers" / "__init__.py")
