"""Killed and started again, a fit has one run in each logger: no step is missing, none is twice."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import script_environ
from tests.plugin.wandb_files import records

pytestmark = pytest.mark.matrix

OURS = "checkpoint/"
"""Prefix of what this package measures of its own saves, in each start."""
HERE = Path(__file__).parent
LIMIT_S = 110.0
OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
"""Lightning resumes exactly at the ends of epochs only."""
KILLS: tuple[dict[str, Any], ...] = (
    ({"kill": 2}, {"between": 9}, {"kill": 14, "saved": 12}, {})
    if not OLD
    else ({"kill": 2}, {"kill": 11, "saved": 8}, {"kill": 20, "saved": 16}, {})
)
"""Before anything is saved; between a save and its row; in the second epoch; and to the end."""
SAVES = (
    {"every_n_epochs": 1, "save_on_train_epoch_end": True} if OLD else {"every_n_train_steps": 3}
)


@pytest.fixture
def job(fork_server: Any, tmp_path: Path) -> Any:
    """Runs `logger_job.py` in a folder, and says how it ended."""

    def job(place: Path, *loggers: str, rc: int = 0, **more: Any) -> str:
        place.mkdir(exist_ok=True)
        env = {
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            "WANDB_SILENT": "true",
            "HOME": str(tmp_path),
        }
        command = {"place": str(place), "loggers": loggers, "saves": SAVES, **more}
        with fork_server.popen(
            [sys.executable, str(HERE / "logger_job.py"), json.dumps(command)],
            group=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=place,
            env=script_environ(env, (HERE,)),
            text=True,
        ) as process:
            said: str = process.communicate(timeout=LIMIT_S)[0]
        assert process.returncode == rc, said
        return said

    return job


def _killed(job: Any, place: Path, *loggers: str, **more: Any) -> None:
    for how in KILLS:
        job(place, *loggers, rc=-signal.SIGKILL if how else 0, **how, **more)


def _csv(place: Path) -> list[dict[str, str]]:
    """The rows in their order, without what this package measures of its own saves."""
    (run,) = (place / "csv" / "lightning_logs").iterdir()
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["checkpoint/step"]]
    return [{k: v for k, v in row.items() if not k.startswith(OURS)} for row in rows]


def _tensorboard(place: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (run,) = (place / "tensorboard" / "lightning_logs").iterdir()
    read = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in read.Tags()["scalars"] if not tag.startswith(OURS)]
    found = {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in tags}
    raw = Counter(
        value.tag
        for file in run.glob("*tfevents*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )
    assert {tag: raw[tag] for tag in tags} == {tag: len(rows) for tag, rows in found.items()}
    return found


def _mlflow(place: Path) -> dict[str, list[tuple[int, float]]]:
    (meta,) = (place / "mlruns").glob("*/*/meta.yaml")
    assert "status: 3" in meta.read_text()  # finished
    found = {}
    for file in filter(Path.is_file, (meta.parent / "metrics").iterdir()):
        lines = [line.split() for line in file.read_text().splitlines()]
        found[file.name] = [(int(step), float(value)) for _, value, step in lines]
    return found


def _wandb(place: Path) -> list[dict[str, Any]]:
    """Of the one run that a sync sends: what it has in each step of its history."""
    files = list(place.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    (file,) = (one for one in files if not one.with_name(f"{one.name}.synced").exists())
    histories = [r.history for r in records(file) if r.HasField("history")]
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in one.item}
        for one in histories
    ]
    rows = [row for row in rows if "checkpoint/step" not in row]
    hidden = ("_timestamp", "_runtime", "_step")
    return [{k: v for k, v in sorted(row.items()) if k not in hidden} for row in rows]


READERS = {"csv": _csv, "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


@pytest.mark.timeout(300)  # five trainings, of which each imports what its loggers need
@pytest.mark.parametrize("loggers", [("csv", "tensorboard"), ("mlflow", "wandb")], ids="+".join)
def test_a_logger_has_the_rows_of_the_uninterrupted_run(
    job: Any, tmp_path: Path, loggers: tuple[str, ...]
) -> None:
    """In one run, in its order, each value equal."""
    loggers = tuple(each for each in loggers if find_spec(each) or each == "csv")
    job(tmp_path / "whole", *loggers)
    _killed(job, tmp_path / "killed", *loggers)
    for each in loggers:
        found, expected = (READERS[each](tmp_path / name) for name in ("killed", "whole"))
        assert found == expected, _difference(each, found, expected)
        assert len(expected) >= 6


def _difference(logger: str, found: Any, expected: Any) -> str:
    """Where they differ, whole: pytest shows the first items only."""
    if not isinstance(expected, dict):
        return f"{logger}\nfound    {found}\nexpected {expected}"
    names = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
    each = [f"{x}\nfound    {found.get(x)}\nexpected {expected.get(x)}" for x in sorted(names)]
    return "\n".join([logger, *each])
