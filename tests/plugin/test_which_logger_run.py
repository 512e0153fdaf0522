"""Which run a logger goes on with, and which it leaves alone."""

from __future__ import annotations

import csv
import shutil
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from lightning.pytorch.loggers import CSVLogger

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
pytestmark = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 logs the first step resumed inside an epoch as the last one"
)


@pytest.fixture
def fit(runs: ModuleType, tmp_path: Path) -> Any:
    """Trains until a step, each step saved; the same directory each time."""

    def fit(stop_at: int | None, logger: Any = None, kind: Any = runs.Net, **options: Any) -> Any:
        made = CSVLogger(tmp_path / "logs", name="") if logger is None else logger
        make = partial(kind, stop_at)
        return runs.fit(tmp_path / "ck", make=make, logger=made, **options)

    return fit


@pytest.fixture
def logs(tmp_path: Path) -> Any:
    """The steps in each version's file."""

    def logs() -> dict[str, list[int]]:
        found = {}
        for file in sorted((tmp_path / "logs").glob("*/metrics.csv")):
            with file.open(newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if row["loss"]]
            found[file.parent.name] = [int(row["step"]) for row in rows]
        return found

    return logs


def test_a_fit_goes_on_in_its_version_and_can_be_told_not_to(fit: Any, logs: Any) -> None:
    fit(5)
    fit(9)
    assert logs() == {"version_0": list(range(9))}
    fit(11, bt={"resume_loggers": False})
    assert logs() == {"version_0": list(range(9)), "version_1": [9, 10]}
    fit(12)  # what its checkpoint says nothing of begins anew
    assert logs()["version_2"] == [11]


@pytest.mark.parametrize("named", [0, "mine"])
def test_a_version_that_the_script_names_goes_on(
    fit: Any, logs: Any, tmp_path: Path, named: Any
) -> None:
    """Lightning alone deletes what is there."""
    for stop_at in (5, 9):
        fit(stop_at, CSVLogger(tmp_path / "logs", name="", version=named))
    assert list(logs().values()) == [list(range(9))]


def test_another_version_that_the_script_names_is_another_run(
    fit: Any, logs: Any, tmp_path: Path
) -> None:
    for stop_at, named in ((5, "a"), (9, "b")):
        fit(stop_at, CSVLogger(tmp_path / "logs", name="", version=named))
    assert logs() == {"a": list(range(5)), "b": [5, 6, 7, 8]}


def test_a_directory_of_another_run_is_not_touched(fit: Any, logs: Any, tmp_path: Path) -> None:
    """A disk that was lost has other runs by now, with the same numbers."""
    fit(5)
    shutil.rmtree(tmp_path / "logs")
    other = tmp_path / "logs" / "version_0" / "metrics.csv"
    other.parent.mkdir(parents=True)
    other.write_text("loss,step\n1.0,77\n")
    fit(9)
    assert logs() == {"version_0": [77], "version_1": [5, 6, 7, 8]}


def test_a_log_that_was_lost_begins_with_the_step_resumed_from(
    fit: Any, logs: Any, tmp_path: Path
) -> None:
    fit(5)
    shutil.rmtree(tmp_path / "logs")
    fit(9)
    (steps,) = logs().values()
    assert steps[-4:] == [5, 6, 7, 8]


def test_a_path_that_the_user_names_begins_a_new_run(fit: Any, logs: Any, tmp_path: Path) -> None:
    fit(5)
    fit(7, ckpt_path=str(tmp_path / "ck" / "checkpoint-3"))
    assert logs() == {"version_0": list(range(5)), "version_1": [3, 4, 5, 6]}


def test_a_kill_while_the_file_is_rewritten_loses_no_row(
    fit: Any, logs: Any, tmp_path: Path
) -> None:
    """Lightning deletes the file in between."""
    fit(5)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    file.rename(file.with_name(".bt_lightning-metrics.csv"))
    fit(9)
    assert logs() == {"version_0": list(range(9))}


def test_a_row_that_a_kill_has_cut_off_is_logged_again(fit: Any, logs: Any, tmp_path: Path) -> None:
    fit(5)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open("a") as file:
        file.write("0.5,7")
    fit(9)
    assert logs() == {"version_0": list(range(9))}


def test_a_complete_fit_keeps_what_was_logged_behind_it(
    fit: Any, runs: ModuleType, tmp_path: Path
) -> None:
    run = fit(None, max_epochs=1)
    run.trainer.test(run.module, runs.validation(), verbose=False)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    before = file.read_text().splitlines()
    fit(None, max_epochs=1)
    assert file.read_text().splitlines() == before


def test_a_logger_that_has_a_run_before_the_fit_is_left_alone(
    fit: Any, logs: Any, tmp_path: Path, caplog: Any
) -> None:
    fit(5)
    logger = CSVLogger(tmp_path / "logs", name="")
    _ = logger.experiment
    fit(9, logger)
    assert "csv-1 has a run of before the fit and leaves version=0" in caplog.text
    assert logs() == {"version_0": list(range(5)), "version_1": [5, 6, 7, 8]}


def test_columns_that_come_later_do_not_hinder_a_resume(
    fit: Any, logs: Any, runs: ModuleType
) -> None:
    class Late(runs.Net):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step > 6:
                self.log("late", 1.0)

    for stop_at in (5, 9, 12):
        fit(stop_at, kind=Late)
    assert logs() == {"version_0": list(range(12))}


@pytest.mark.parametrize(
    "said",
    [
        {"version": "../../elsewhere"},
        {"version": None},
        {"token": "../../x"},
        {"token": 5},
        {"rows": "all"},
        {"pending": None},
    ],
)
def test_facts_that_somebody_else_wrote_lead_nowhere(
    fit: Any, logs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    from bt_lightning.lightning_plugin import logger_start

    fit(5)
    true = logger_start.facts_of_all
    monkeypatch.setattr(
        logger_start, "facts_of_all", lambda v: {k: {**f, **said} for k, f in true(v).items()}
    )
    fit(9)
    assert logs() == {"version_0": list(range(5)), "version_1": [5, 6, 7, 8]}
    assert {path.name for path in tmp_path.iterdir()} == {"ck", "logs"}
