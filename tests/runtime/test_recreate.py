"""`jobs recreate` starts the same command as a new job, with nothing of a secret kept for it."""

from __future__ import annotations

import json
import os

import pytest

from tests.runtime.test_stop import said

pytestmark = pytest.mark.matrix

ECHO = 'echo "$0 $BT_TRAINING_JOB_ID $BT_CHECKPOINT_DIR"; pwd; exit "$BT_RETRY_COUNT"'


def recreated(runner, *words, code=0, cwd=None, env=None):
    where = ("--store", runner.path / "store")
    return said("jobs", "recreate", *words, *where, code=code, cwd=cwd, env=env)


def test_the_same_command_runs_as_a_new_job_where_the_first_was_started(runner, tmp_path_factory):
    given = ("--retries", "2", "--no-logs", "--", "sh", "-c", ECHO, "with space")
    runner("--job-id", "j", "--project", "p", "--store", "./store", *given)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    out, err = recreated(runner, "j", "--new-job-id", "k", "--yes", cwd=elsewhere)
    fresh = runner.path / "bt_checkpoints" / "k"
    assert out == f"with space k {fresh}\n{runner.path}\n"
    assert "bt-lightning run --project p --job-id k" in err
    assert "--retries 2 --no-logs -- sh -c" in err
    record, first = runner.record("k"), runner.record("j")
    assert record["arguments"] == first["arguments"]
    assert (record["project"], record["status"]) == ("p", "COMPLETED")
    assert (runner.path / "store/training_projects/p/jobs/k/rank-0/.bt_lightning-job").is_file()
    out, _ = recreated(runner, "j", "--dry-run")
    assert "-c 'echo " in out
    here = os.path.relpath(runner.path / "store", elsewhere)  # a path is of where one stands
    out, _ = said("jobs", "recreate", "j", "--dry-run", "--store", here, cwd=elsewhere)
    assert f"--store {elsewhere / here} " in out
    assert " --job-id " in out
    assert "no terminal to ask on" in recreated(runner, "j", code=2)[1]
    assert "goes on with it" in recreated(runner, "j", "--new-job-id", "j", "--yes", code=2)[1]


def test_a_config_is_planned_again(runner):
    (runner.path / "config.py").write_text(
        "from truss_train import definitions as d\n"
        "kept = d.CheckpointingConfig(enabled=True, checkpoint_path='mine')\n"
        "lines = ['echo $BT_TRAINING_JOB_ID']\n"
        "runtime = d.Runtime(start_commands=lines, checkpointing_config=kept)\n"
        "job = d.TrainingJob(image=d.Image(base_image='x'), runtime=runtime)\n"
        "project = d.TrainingProject(name='demo/p', job=job)\n"
    )
    store = ("--store", runner.path / "store")
    assert runner("--job-id", "j", *store, "config.py")[0] == "j\n"
    _, err = recreated(runner, "j", "--yes", code=2)
    assert "--new-dir" in err  # its directory has the checkpoints of the first
    out, _ = recreated(runner, "j", "--yes", "--new-job-id", "k", "--new-dir", runner.path / "new")
    assert out == "k\n"
    assert json.loads((runner.path / "new/.bt_lightning/job.json").read_text())["job_id"] == "k"


def test_a_secret_is_not_kept_and_the_job_not_started_without_it(runner):
    env = {"WANDB_API_KEY": "abc123secret"}
    store = ("--store", runner.path / "store")
    runner("--job-id", "j", *store, "--", "sh", "-c", "true", "--key=abc123secret", env=env)
    for path in runner.path.rglob("*"):
        assert path.is_dir() or b"abc123secret" not in path.read_bytes(), path
    assert "secret" in recreated(runner, "j", "--yes", code=2)[1]


@pytest.mark.parametrize("damage", [{"arguments": []}, {"arguments": ["--help-me"]}])
def test_what_cannot_be_started_again_is_refused(runner, damage):
    runner("--job-id", "j", "--store", runner.path / "store", "--", "true")
    path = runner.path / "store/training_projects/default/jobs/j/rank-0/.bt_lightning-job"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    recreated(runner, "j", "--yes", code=2)
    recreated(runner, "unknown", "--yes", code=10)
    path.write_text(json.dumps({**json.loads(path.read_text()), "directory": "/nowhere/at/all"}))
    if damage["arguments"]:
        assert "--working-directory" in recreated(runner, "j", "--yes", code=2)[1]
