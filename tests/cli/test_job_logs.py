"""`jobs logs`, `jobs events`, `jobs metrics`: from a store, from a directory, as they grow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from bt_lightning.job_record import JobRecord
from bt_lightning.localdir.event_log import append, log_line
from bt_lightning.log_kinds import EVENTS, METRICS, OUTPUT, log_folder
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.job_records import write_record
from bt_lightning.worker.send_logs import LogSender

AT = 1_767_323_045.5  # 2026-01-02 03:04:05
LIMIT_S = 60


class Job:
    """A directory with logs, and a store that they are sent to."""

    def __init__(self, path, node=0):
        self.root, self.store = path / f"root-{node}", LocalStore(path / "store")
        self.root.mkdir(exist_ok=True)
        self.prefix = job_prefix("p", "j", node)
        self.place = ("--store", (path / "store").as_uri())

    def print(self, *texts, attempt=0, at=AT):
        for number, text in enumerate(texts):
            facts = {"attempt": attempt, "stream": "stdout", "text": text}
            append(self.root, log_line("output", at + number, **facts), OUTPUT)
        self.send()

    def note(self, kind, event, at=AT, **facts):
        append(self.root, log_line(event, at, **facts), kind)

    def send(self):
        LogSender(self.root, self.store, self.prefix).send(ending=True)

    def record(self, status, **facts):
        facts = {"group_size": 1, "node_rank": 0, **facts}
        record = JobRecord(
            project="p",
            job_id="j",
            job_name="j",
            host="h",
            status=status,
            checkpoint_sync_status=None,
            created_at="2026-01-02T03:00:00+00:00",
            updated_at="2026-01-02T03:09:00+00:00",
            **facts,
        )
        write_record(self.store, self.prefix, record)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_what_was_printed_is_printed_with_a_line_between_attempts(cli, job):
    job.print("one", "two\tx")
    shutil.rmtree(job.root)
    job.root.mkdir()
    job.print("three", "\x1b[2Jfour", attempt=1, at=AT + 60)
    said = cli("jobs", "logs", "j", *job.place).stdout
    assert said.splitlines() == [
        "one",
        "two\tx",
        "--- attempt 1, 2026-01-02 03:05:05Z ---",
        "three",
        "\N{REPLACEMENT CHARACTER}[2Jfour",
    ]
    assert cli("jobs", "logs", "j", *job.place, "--tail", "1").stdout.count("\n") == 1
    assert cli("jobs", "logs", "j", *job.place, "--attempt", "0").stdout == "one\ntwo\tx\n"
    stamped = cli("jobs", "logs", "j", *job.place, "--attempt", "1", "--timestamps").stdout
    assert stamped.splitlines()[0] == "2026-01-02 03:05:05Z three"
    line = cli("jobs", "logs", "j", *job.place, "--tail", "1", "-o", "json").stdout
    assert json.loads(line)["attempt"] == 1


def test_a_directory_alone_is_enough_where_it_is(cli, job):
    job.print("one")
    assert cli("jobs", "logs", "--dir", job.root).stdout == "one\n"
    job.note(METRICS, "metrics", step=1, epoch=0, values={"loss": 0.5})
    assert "0.5" in cli("jobs", "metrics", "--dir", job.root).stdout


def test_nodes_are_told_apart(cli, job, tmp_path):
    job.record("RUNNING", group_size=2)
    job.print("of node 0")
    Job(tmp_path, 1).print("of node 1", at=AT + 0.5)
    said = cli("jobs", "logs", "j", *job.place).stdout
    assert said == "[node 0] of node 0\n[node 1] of node 1\n"
    assert cli("jobs", "logs", "j", *job.place, "--node", "1").stdout == "of node 1\n"


def test_what_the_store_keeps_no_more_is_named(cli, job):
    for number in range(3):
        job.print(*(f"{number}{'x' * 3000}" for _ in range(100)), at=AT + 100 * number)
    folder = log_folder(job.prefix, OUTPUT)
    keys = sorted(info.key for info in job.store.list(folder))
    assert len(keys) > 2
    job.store.delete(keys[1:2])
    said = cli("jobs", "logs", "j", *job.place).stdout
    assert "... up to 262.14 KB are kept no more" in said


def test_a_job_without_logs_says_so(cli, job):
    job.record("RUNNING")
    for what in ("logs", "events", "metrics"):
        said = cli("jobs", what, "j", *job.place, code=10).stderr
        assert "of the job j" in said
        assert "name a directory" in cli("jobs", what, code=2).stderr


def test_metrics_of_every_step_count_as_the_last_run_did_them(cli, job):
    for at, step, values in (
        (0, 2, {"loss": 4.0}),
        (1, 4, {"loss": 3.0}),
        (2, 6, {"loss": 2.0}),  # lost
        (9, 5, {"loss": 2.5}),
        (10, 6, {"loss": float("nan")}),
        (11, 6, {"val_loss": 1.0}),
        (12, 7, "odd"),
    ):
        job.note(METRICS, "metrics", AT + at, step=step, epoch=0, values=values)
    job.send()
    told = json.loads(cli("jobs", "metrics", "j", *job.place, "-o", "json").stdout)
    assert [(row["step"], row["values"]["loss"]) for row in told["rows"]] == [
        (2, 4.0),
        (4, 3.0),
        (5, 2.5),
        (6, "NaN"),
    ]
    assert told["rows"][-1]["values"]["val_loss"] == 1.0
    text = cli("jobs", "metrics", "j", *job.place, "-o", "csv", "--name", "val*").stdout
    assert text == "Step,Epoch,Time,val_loss\n6,0,2026-01-02T03:04:16.500000+00:00,1.0\n"
    every = cli("jobs", "metrics", "j", *job.place, "--all", "-o", "json").stdout
    assert [row["step"] for row in json.loads(every)["rows"]] == [2, 4, 6, 5, 6, 6]
    assert "val_loss" in cli("jobs", "metrics", "j", *job.place, "--tail", "1").stdout


def test_events_and_what_they_tell_of_the_job(cli, job, golden):
    job.record("RUNNING")
    job.note(EVENTS, "attempt_began", number=0, host="h")
    job.note(EVENTS, "began", AT + 1, step=0, host="h", pid=7)
    facts = {"number": 1, "checkpoint_id": "c-10", "step": 10, "decision": "saved", "call_ms": 2.5}
    job.note(EVENTS, "save", AT + 2, began=AT + 1.5, **facts)
    job.note(EVENTS, "durable", AT + 2, checkpoint="c-10", bytes=5000, local_durable_s=0.5)
    job.note(EVENTS, "published", AT + 3, checkpoint="c-10", bytes=5000, remote_durable_s=1.5)
    job.note(METRICS, "metrics", AT + 4, step=15, epoch=0, values={"loss": 1.0})
    job.note(EVENTS, "attempt_ended", AT + 5, number=0, outcome="failed", signal=9, exit_code=None)
    job.note(EVENTS, "began", AT + 6, step=10, host="h2", pid=8)
    job.send()
    shutil.rmtree(job.root)
    golden("job-events.txt", cli("jobs", "events", "j", *job.place).stdout)
    golden("job-show-history.txt", cli("jobs", "show", "j", *job.place).stdout)
    listed = cli("jobs", "events", "j", *job.place, "-o", "json", "--kind", "save").stdout
    told = json.loads(listed)
    assert told["events"][0]["checkpoint_id"] == "c-10"
    assert (
        cli("jobs", "events", "j", *job.place, "-o", "csv", "--tail", "1").stdout.count("\n") == 2
    )


def test_a_job_without_events_claims_nothing(cli, job):
    job.record("RUNNING")
    assert "not known" in cli("jobs", "show", "j", *job.place).stdout
    listed = cli("jobs", "list", *job.place).stdout
    assert "2026-01-02 03:09:00Z" in listed  # when it was last heard of


def test_follow_prints_what_comes_until_the_job_is_over(job):
    job.record("RUNNING")
    job.print("one")
    command = [sys.executable, "-m", "bt_lightning", "jobs", "logs", "j", *job.place, "-f"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        timer = threading.Timer(LIMIT_S, process.kill)
        timer.start()
        try:
            assert process.stdout.readline() == "one\n"
            job.print("two", at=AT + 1)
            assert process.stdout.readline() == "two\n"
            job.print("three", at=AT + 2)
            job.record("COMPLETED")
            assert process.stdout.read() == "three\n"
            assert process.wait() == 0
        finally:
            timer.cancel()
            timer.join()


def test_follow_ends_by_ctrl_c(job):
    job.record("RUNNING")
    job.print("one")
    command = [sys.executable, "-m", "bt_lightning", "jobs", "logs", "j", *job.place, "--follow"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout.readline() == "one\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, err) == (130, "interrupted\n")
