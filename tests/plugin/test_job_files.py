"""Other files of the checkpoint directory reach the store by a real run, unless one says no."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import BTLightning, InvalidSettingError
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def other_files(store: Path) -> set[str]:
    (job,) = store.glob("training_projects/*/jobs/*/rank-0")
    found = list_job(LocalStore(store), job.relative_to(store).as_posix())
    assert found.committed, "its checkpoint must be there in any case"
    return set(found.job_files())


def fit(runs: ModuleType, root: Path, store: Path, **options: Any) -> None:
    (root / "results").mkdir(parents=True, exist_ok=True)
    (root / "results" / "scores.json").write_text("{}")
    (root / "notes.txt").write_text("x")
    runs.fit(root, callbacks=[BTLightning(dir=root, store=str(store), **options)])


def test_a_run_sends_them_all(runs: ModuleType, tmp_path: Path) -> None:
    fit(runs, tmp_path / "root", tmp_path / "store")
    assert {"results/scores.json", "notes.txt"} <= other_files(tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sync_files": False}, set()),
        ({"sync_include": ["**/*.json"]}, {"results/scores.json"}),
        ({"sync_exclude": ["results/**", "lightning_logs/**"]}, {"notes.txt"}),
    ],
)
def test_arguments_choose(
    runs: ModuleType, tmp_path: Path, options: dict[str, Any], expected: set[str]
) -> None:
    fit(runs, tmp_path / "root", tmp_path / "store", **options)
    assert other_files(tmp_path / "store") == expected


def test_variables_choose_what_arguments_leave_open(
    runs: ModuleType, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BT_SYNC_INCLUDE", "**/*.json , *.txt,")
    environ.setenv("BT_SYNC_EXCLUDE", "results/**")
    fit(runs, tmp_path / "root", tmp_path / "store")
    assert other_files(tmp_path / "store") == {"notes.txt"}


@pytest.mark.parametrize("value", ["*.json", [""], [1]])
def test_patterns_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(InvalidSettingError, match="expected a list of patterns"):
        BTLightning(sync_include=value)


def test_a_file_that_cannot_be_sent_ends_no_training(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "back\\slash").write_text("x")
    with caplog.at_level(logging.WARNING):
        fit(runs, root, tmp_path / "store")
    assert "back" not in str(other_files(tmp_path / "store"))
