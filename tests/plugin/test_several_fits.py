"""Scripts with several fits that are killed and started again: each goes on with what is its own.

What is right is what the script comes to without bt_lightning, if nothing kills it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from bt_lightning.cli.app import main
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.lease import Lease

if TYPE_CHECKING:
    from tests.plugin.conftest import Process, Scripts

SCRIPT = Path(__file__).with_name("several_fits.py")


class Work:
    """A directory in which one of the scripts is started again and again."""

    def __init__(self, scripts: Scripts, path: Path, script: str) -> None:
        self._scripts, self.path, self._script = scripts, path, script
        path.mkdir(exist_ok=True)

    def start(self, *, code: int = 0, ours: bool = True, **env: str) -> Process:
        home = {"BT_LIGHTNING": "1", "BT_CHECKPOINT_DIR": str(self.path / "ck")} if ours else {}
        text = f"import os, runpy, sys\nos.chdir({str(self.path)!r})\n" + SCRIPT.read_text()
        file = self.path / "train.py"
        file.write_text(text.replace("from __future__ import annotations\n", "", 1))
        return self._scripts.run(file, self._script, env={**home, **env}, code=code)

    def killed(self, at: str = "", **env: str) -> None:
        self.start(code=-signal.SIGKILL, KILL=at, **env)

    @property
    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "results.json").read_text())
        return found


@pytest.fixture
def right(scripts: Scripts, tmp_path: Path) -> Any:
    """What a script comes to by itself."""

    def run(script: str, **env: str) -> dict[str, Any]:
        work = Work(scripts, tmp_path / "right", script)
        work.start(ours=False, **env)
        return work.results

    return run


@pytest.mark.parametrize("kill", ["0:1", "2:2", "3:1"])
def test_folds_of_which_the_finished_ones_are_skipped(
    scripts: Scripts, tmp_path: Path, right: Any, kill: str
) -> None:
    work = Work(scripts, tmp_path / "work", "folds")
    work.killed(kill)
    work.start()
    assert work.results == right("folds")
    folders = {p.parent.parent.name for p in work.path.rglob("bt_manifest.json")}
    assert folders == {"ck", "fit-2", "fit-3", "fit-4"}, "each fold is saved"
    newest = max((work.path / "ck" / "fit-3").iterdir()).name
    words = ("checkpoints", "show", "--dir", str(work.path / "ck"), f"fit-3/{newest}")
    said = CliRunner().invoke(main, words).output
    assert "Fit  fit-3" in said, "and a person sees which is of which"


@pytest.mark.parametrize(
    "kill", [{"at": "one:1"}, {"at": "two:2"}, {"BETWEEN": "1"}], ids=["in_1", "in_2", "between"]
)
def test_stages_of_which_the_finished_one_is_skipped(
    scripts: Scripts, tmp_path: Path, right: Any, kill: dict[str, str]
) -> None:
    work = Work(scripts, tmp_path / "work", "stages")
    work.killed(**kill)
    work.start()
    assert work.results == right("stages")
    assert work.results["two"][0] == 24


@pytest.mark.parametrize("skip", [{"SKIP": "1"}, {}], ids=["skips", "fits_all_again"])
@pytest.mark.parametrize("kill", ["0:1", "1:2"])
def test_a_search_for_hyperparameters(
    scripts: Scripts, tmp_path: Path, right: Any, skip: dict[str, str], kill: str
) -> None:
    work = Work(scripts, tmp_path / "work", "search")
    work.killed(kill, **skip)
    work.start(**skip)
    assert work.results == right("search")
    ended = work.start(**skip)
    assert work.results == right("search"), ended.err


@pytest.mark.parametrize("kill", ["0:1", "1:0", "1:1", "2:0"])
def test_what_follows_a_fit_that_had_ended_draws_on(
    scripts: Scripts, tmp_path: Path, right: Any, kill: str
) -> None:
    once = {"SEED_ONCE": "1"}
    work = Work(scripts, tmp_path / "work", "search")
    work.killed(kill, **once)
    work.start(**once)
    assert work.results == right("search", **once)


@pytest.mark.parametrize("kill", ["all:1", "all:2", "all:3", "all:4", "all:5"])
def test_one_trainer_that_fits_again_for_more_epochs(
    scripts: Scripts, tmp_path: Path, right: Any, kill: str
) -> None:
    work = Work(scripts, tmp_path / "work", "raised")
    work.killed(kill)
    work.start()
    assert work.results == right("raised")


def test_a_run_that_stopped_early_trains_no_more(
    scripts: Scripts, tmp_path: Path, right: Any
) -> None:
    work = Work(scripts, tmp_path / "work", "stopped_early")
    work.start()
    assert work.results == right("stopped_early")
    lying = sorted(p.parent.name for p in work.path.rglob("bt_manifest.json"))
    for _ in range(2):
        assert work.start().err.count("nothing is left to train") == 1
        assert work.results == right("stopped_early")
    assert sorted(p.parent.name for p in work.path.rglob("bt_manifest.json")) == lying


def test_folds_go_on_after_the_disk_was_lost(scripts: Scripts, tmp_path: Path, right: Any) -> None:
    work = Work(scripts, tmp_path / "work", "folds")
    store = {"BT_STORE_URL": (tmp_path / "store").as_uri()}
    work.killed("2:2", **store)
    wait_until(lambda: is_left_alone(work.path / "ck", jobs_of(tmp_path / "store")[0]))
    shutil.rmtree(work.path / "ck")
    work.start(**store)
    assert work.results == right("folds")


def jobs_of(store: Path) -> list[Path]:
    return sorted((store / "training_projects" / "default" / "jobs").iterdir())


def checkpoints_below(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("bt_manifest.json"))


def wait_until(is_so: Any) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_left_alone(root: Path, job: Path) -> bool:
    """Whether the worker has ended, and has left the ledger and the first epoch in the store."""
    with (root / ".bt_lightning" / "worker.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return checkpoints_below(job) > 0 and any(job.rglob(".bt_lightning-fits"))


def job_without_its_disk(work: Work, store: Path, aside: str) -> Path:
    """Kill the work in its second epoch and take its directory away; the job that it leaves."""
    before = set(jobs_of(store)) if store.is_dir() else set()
    work.killed("only:1", BT_STORE_URL=store.as_uri())
    [job] = set(jobs_of(store)) - before
    wait_until(lambda: is_left_alone(work.path / "ck", job))
    (work.path / "ck").rename(work.path.parent / aside)
    return job


def test_another_machine_with_the_same_path_trains_a_job_of_its_own(
    scripts: Scripts, tmp_path: Path, right: Any
) -> None:
    work, store = Work(scripts, tmp_path / "work", "stopped_early"), tmp_path / "store"
    work.start(BT_STORE_URL=store.as_uri())
    own = checkpoints_below(work.path / "ck")
    (work.path / "ck").rename(tmp_path / "ck")  # what the other machine has there is nothing
    assert work.start(BT_STORE_URL=store.as_uri()).err.count("is new") == 0
    assert work.results == right("stopped_early")
    assert [checkpoints_below(job) for job in jobs_of(store)] == [own, own], "two whole jobs"
    assert work.start(BT_STORE_URL=store.as_uri()).err.count("nothing is left to train") == 1
    assert len(jobs_of(store)) == 2, "the name lies in the directory"


def test_a_copy_of_a_directory_is_another_job(scripts: Scripts, tmp_path: Path) -> None:
    store = {"BT_STORE_URL": (tmp_path / "store").as_uri()}
    first = Work(scripts, tmp_path / "first", "stopped_early")
    first.start(**store)
    shutil.copytree(first.path, tmp_path / "second")
    Work(scripts, tmp_path / "second", "stopped_early").start(**store)
    assert len(jobs_of(tmp_path / "store")) == 2


def test_a_lost_disk_is_found_by_what_is_trained(
    scripts: Scripts, tmp_path: Path, right: Any
) -> None:
    store = tmp_path / "store"
    work = Work(scripts, tmp_path / "work", "stopped_early")
    job = job_without_its_disk(work, store, "lost")
    again = work.start(BT_STORE_URL=store.as_uri())
    assert f"go on with {job.name} of the store" in again.err
    assert work.results == right("stopped_early")
    assert jobs_of(store) == [job]


def test_of_two_lost_jobs_none_is_taken_and_a_name_says_which(
    scripts: Scripts, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    work = Work(scripts, tmp_path / "work", "stopped_early")
    first = job_without_its_disk(work, store, "first")
    first.rename(tmp_path / "aside")  # so that the second does not go on with it
    job_without_its_disk(work, store, "second")
    (tmp_path / "aside").rename(first)
    began = work.start(BT_STORE_URL=store.as_uri())
    assert "begin afresh" in began.err
    assert "and 1 more" in began.err
    assert len(jobs_of(store)) == 3


def test_a_job_that_is_being_trained_elsewhere_is_not_taken_over(
    scripts: Scripts, tmp_path: Path, right: Any
) -> None:
    store = tmp_path / "store"
    work = Work(scripts, tmp_path / "work", "stopped_early")
    job = job_without_its_disk(work, store, "elsewhere")
    prefix = (job / "rank-0").relative_to(store).as_posix()
    lease = Lease(LocalStore(store), prefix, "another directory")
    lease.take()
    try:
        began = work.start(BT_STORE_URL=store.as_uri())
    finally:
        lease.release()
    assert f"begin another job, for {job.name} of the store trains the same" in began.err
    assert work.results == right("stopped_early")
    assert len(jobs_of(store)) == 2


def test_a_script_that_requires_a_resume_is_not_satisfied_by_another_fit(
    scripts: Scripts, tmp_path: Path
) -> None:
    text = """
        import sys
        import lightning as L
        from bt_lightning import BTLightning
        from plugin_runs import Net, loader, trainer

        resume, epochs = sys.argv[1:]
        net = Net(width=int(epochs) * 8)
        net.save_hyperparameters({"width": int(epochs)})
        L.seed_everything(1)
        trainer("root", BTLightning("ck", resume=resume), max_epochs=int(epochs)).fit(net, loader())
    """
    file = scripts.write(text)
    scripts.run(file, "auto", 1)
    refused = scripts.run(file, "require", 2, code=1)
    assert "CheckpointNotFoundError" in refused.err
    assert "of other fits only" in refused.err
    scripts.run(file, "require", 1)
