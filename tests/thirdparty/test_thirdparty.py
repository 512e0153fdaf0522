"""Scripts as users of other packages write them, killed below `bt-lightning run`.

Each knows nothing of this package. It ends with the results of an undisturbed run without it, bit
for bit, which includes what the package's own loading makes of what it saved. `nox -s thirdparty`
installs each package in an environment of its own; where one is missing its test is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bt_lightning.localdir.event_log import read_events

HERE = Path(__file__).parent
LIMIT_S = 500
SCRIPTS: dict[str, tuple[str, list[int]]] = {
    "pytorch_forecasting_tft.py": ("pytorch_forecasting", [3, 14]),
    "darts_nbeats.py": ("darts", [9, 25]),
    "scvi_scvi.py": ("scvi", [7, 5]),
    "neuralforecast_models.py": ("neuralforecast", [13, 4]),
    "chemprop_mpnn.py": ("chemprop", [7, 5]),
    "chemprop_cli.sh": ("chemprop", [7, 5]),
}
"""Script -> package, in how many batches behind a new checkpoint each start is killed."""

pytestmark = pytest.mark.timeout(2 * LIMIT_S)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_of_another_package_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, script: str
) -> None:
    package, kills = SCRIPTS[script]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; `nox -s thirdparty` has it")
    command = ["bash" if script.endswith(".sh") else sys.executable, HERE / "scripts" / script]
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    run = [sys.executable, "-m", "bt_lightning", "run", "--dir", "ck", "--store", "./store"]
    run += ["--job-id", "j", "--retries", str(len(kills)), "--"]
    started = {
        plain: start(plain, command, {}),
        killed: start(killed, [*run, *command], {"KILL_AFTER": " ".join(map(str, kills))}),
    }
    try:
        codes = {folder: process.wait(LIMIT_S) for folder, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
    said = {folder.name: (folder / "output").read_text()[-6000:] for folder in started}
    assert codes == dict.fromkeys(started, 0), said
    record = json.loads((killed / "ck" / ".bt_lightning" / "job.json").read_text())
    outcomes = [attempt["outcome"] for attempt in record["attempts"]]
    assert outcomes == [*["failed"] * len(kills), "done"], said["killed"]
    began = [event["step"] for event in read_events(killed / "ck") if event["event"] == "began"]
    assert sum(step > 0 for step in began) == len(kills), f"each goes on, began at {began}"
    assert results(killed) == results(plain), said["killed"]


def start(folder: Path, command: list[Any], more: dict[str, str]) -> subprocess.Popen[bytes]:
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BT_")}
    env = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "killing", HERE / "scripts"))),
        "OMP_NUM_THREADS": "1",
        "BT_SAVE_INTERVAL": "0.2",
        **more,
    }
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())
