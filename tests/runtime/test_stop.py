"""`jobs stop` ends a job as SIGTERM does, through its directory or its store, and only that run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bt_lightning.job_record import StopRequest

pytestmark = pytest.mark.matrix

LIMIT_S = 60
SAVES = "trap 'echo saved; exit 0' TERM; {arrive}; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; {arrive}; while :; do sleep 0.05; done"


def said(*words, code=0, cwd=None, env=None):
    """Output and errors of a command, as of another machine: it shares the environment only."""
    command = [sys.executable, "-m", "bt_lightning", *map(str, words)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def running(runner, gate, line, *options, env=None):
    process = runner.start(
        *("--job-id", "j", *options, "--", "sh", "-c", line.format(arrive=gate.arrive)), env=env
    )
    gate.reached()
    return process


@pytest.mark.parametrize("place", ["directory", "store"])
def test_a_job_saves_and_is_stopped_for_good(runner, gate, tmp_path_factory, place):
    store = runner.path / "store"
    process = running(runner, gate, SAVES, "--store", store, "--project", "p", "--retries", "5")
    directory = runner.path / "bt_checkpoints" / "j"
    (directory / ".bt_lightning" / ".stop.json.0.part").touch()  # as a killed `jobs stop` leaves it
    where = ("--dir", directory) if place == "directory" else ("j", "--store", store)
    _, err = said("jobs", "stop", *where, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert "job j: STOPPED" in err
    out, heard = runner.end(process, 143)
    assert out == "saved\n"
    assert "asks this job to stop" in heard
    record = runner.record()
    assert (record["status"], record["checkpoint_sync_status"]) == ("STOPPED", "COMPLETED")
    assert [one["outcome"] for one in record["attempts"]] == ["stopped"]
    assert "@" in record["stop_asked_by"] or record["stop_asked_by"]
    assert not list(runner.path.rglob("*stop*"))  # a request that was honoured is gone
    _, err = said("jobs", "stop", "--dir", directory)
    assert "has ended already" in err
    kinds = json.loads(said("jobs", "events", "--dir", directory, "-o", "json")[0])["events"]
    assert "stop_asked" in [one["event"] for one in kinds]
    assert runner("--job-id", "j", "--store", store, "--", "echo", "again")[0] == "again\n"


def test_a_request_does_not_stop_a_later_run(runner):
    runner("--job-id", "j", "--", "true")
    old = runner.record()["run"]
    request = StopRequest(run=old, by="a", at="2030-01-01T00:00:00+00:00")
    place = runner.path / "bt_checkpoints" / "j" / ".bt_lightning" / "stop.json"
    place.write_bytes(request.to_bytes())
    line = "read x < $BT_CHECKPOINT_DIR/.bt_lightning/stop.json; sleep 1.5; echo end"
    assert runner("--job-id", "j", "--", "sh", "-c", line)[0] == "end\n"
    assert runner.record()["run"] != old


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"\0" * 9, b'"x"', b"{}", b'{"run": 1, "by": "", "at": ""}'),
        b'{"run": "", "by": "", "at": "", "grace_s": "x"}',
        b'{"run": "", "by": "", "at": "", "grace_s": NaN}',
        b'{"run": "", "by": "", "at": "", "grace_s": -1}',
        b"[" * 200_000,
    ],
)
def test_what_is_no_request_is_none(data):
    assert StopRequest.from_bytes(data) is None


def test_who_does_not_end_is_killed_after_the_grace_of_the_request(runner, gate):
    process = running(runner, gate, DEAF)
    directory = runner.path / "bt_checkpoints" / "j"
    _, err = said("jobs", "stop", "--dir", directory, "--timeout", "0.1", code=1)
    assert "has not ended within" in err
    said("jobs", "stop", "--dir", directory, "--grace", "0.1")  # a second request, for the same run
    assert "is killed 0.1 s later" in runner.end(process, 137)[1]


def test_a_grace_bounds_the_life_of_the_command_but_not_the_wait_for_the_store(runner, gate):
    process = running(runner, gate, DEAF, "--store", runner.path / "store")
    out, _ = said(
        "jobs", "stop", "--dir", "bt_checkpoints/j", "--grace", "0.5", "-o", "json", cwd=runner.path
    )
    (row,) = json.loads(out)["jobs"]
    assert (row["asked"], row["status"]) == (True, "STOPPED")
    assert row["checkpoint_sync_status"] == "COMPLETED"
    runner.end(process, 137)


def test_a_stop_between_two_attempts_ends_the_job(runner, gate):
    line = f'[ "$BT_RETRY_COUNT" -lt 3 ] || {gate.arrive}; exit 1'
    process = runner.start("--job-id", "j", "--retries", "99", "--", "sh", "-c", line)
    gate.reached()  # from here on the pause is 8 s
    said("jobs", "stop", "--dir", runner.path / "bt_checkpoints" / "j")
    process.communicate(timeout=LIMIT_S)
    assert runner.record()["status"] == "STOPPED"


def test_every_node_of_a_job_is_stopped(runner, gate):
    store = runner.path / "store"
    places = [{"BT_NODE_RANK": str(rank), "BT_GROUP_SIZE": "2"} for rank in range(2)]
    started = [
        running(
            runner,
            gate,
            SAVES,
            "--store",
            store,
            "--project",
            "p",
            "--dir",
            f"disk-{rank}",
            env={**env, "BT_LEADER_ADDR": "127.0.0.1"},
        )
        for rank, env in enumerate(places)
    ]
    out, err = said("jobs", "stop", "--all", "--yes", "--store", store, "-o", "json")
    assert [row["status"] for row in json.loads(out)["jobs"]] == ["STOPPED", "STOPPED"], err
    for process in started:
        assert runner.end(process, 143)[0] == "saved\n"
    assert "no job is running" in said("jobs", "stop", "--all", "--store", store)[1]


def test_what_cannot_be_stopped_says_why(runner, tmp_path):
    (tmp_path / "own").mkdir()
    assert "Send SIGTERM" in said("jobs", "stop", "--dir", tmp_path / "own", code=10)[1]
    runner("--job-id", "j", "--store", tmp_path / "store", "--", "true")
    record = tmp_path / "store/training_projects/default/jobs/j/rank-0/.bt_lightning-job"
    said_before = json.loads(record.read_text())
    del said_before["run"]
    record.write_text(json.dumps({**said_before, "status": "RUNNING"}))
    _, err = said("jobs", "stop", "j", "--store", tmp_path / "store", code=2)
    assert "earlier version" in err
    _, err = said("jobs", "stop", "--all", "--store", tmp_path / "store", code=2)
    assert "--yes" in err
