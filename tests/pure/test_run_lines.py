"""The lines that a run says of itself."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from bt_lightning.localdir.upload_status import Uploading
from bt_lightning.manifest import Manifest
from bt_lightning.session.run_lines import (
    begin_line,
    changed_numbers,
    end_line,
    process_differences,
    resume_line,
    start_line,
    wait_line,
)
from bt_lightning.session.session_config import SessionConfig
from bt_lightning.settings import Job

SECRET = "s3://key:secret@bucket/runs"


def config(store: str | None = None, project: str = "default", **given) -> SessionConfig:
    return SessionConfig(
        root=Path("/ck"),
        load_dir=None,
        store_url=store,
        upload_mb_s=None,
        content_md5=False,
        job=Job(project=project, job="j1", node_rank=0),
        weights_only=None,
        drain_s=600,
        **{"resume": "auto", **given},
    )


def manifest(**origin) -> Manifest:
    return Manifest(
        step=250,
        epoch=1,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).isoformat(),
        checkpoint_id="checkpoint-250",
        generation=1,
        files=(),
        origin=origin,
    )


@pytest.fixture(autouse=True)
def in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_start_names_directory_store_and_job():
    assert start_line(config()) == "saves to /ck"
    assert start_line(config("s3://b/runs")) == (
        "saves to /ck, and sends to s3://b/runs, job j1 of project default"
    )


def test_no_line_has_the_secret_of_a_url():
    lines = [start_line(config(SECRET)), end_line(config(SECRET), saved=1, kept=1, waits=False)]
    lines.append(end_line(config(SECRET), saved=1, kept=1, waits=True))
    assert all("bucket/runs" in line and "secret" not in line for line in lines)


def test_a_beginning_says_why():
    assert begin_line(config()) == "begins at step 0: there is nothing to resume from"
    assert begin_line(config(resume="never")) == "begins at step 0: resume='never'"


def test_a_resume_names_checkpoint_time_place_host_and_differences():
    found = manifest(host="node-7", versions={"torch": "2.12.0", "python": "3.11.7"}, world_size=2)
    others = process_differences(
        found.origin, {"torch": "2.13.0", "python": "3.11.7", "lightning": "2.6.6"}, 1
    )
    assert resume_line("/ck/checkpoint-250", "", found, others, warm=False) == (
        "resumes checkpoint-250, step 250, of 2026-01-02 03:04:05, from /ck/checkpoint-250, saved"
        " on node-7; 2 differences: torch 2.12.0 -> 2.13.0, ranks 2 -> 1"
    )
    assert resume_line("/ck/checkpoint-250", "s3://b/runs", manifest(), {}, warm=True) == (
        "begins at step 0 with the weights of checkpoint-250, step 250, of 2026-01-02 03:04:05,"
        " from s3://b/runs"
    )
    assert resume_line("/old.ckpt", "", None, {}, warm=False) == "resumes /old.ckpt"


def test_of_many_differences_the_first_are_named():
    many = {f"p{i}": (i, i + 1) for i in range(8)}
    line = resume_line("/old.ckpt", "", None, many, warm=False)
    assert line.endswith(
        "; 8 differences: p0 0 -> 1, p1 1 -> 2, p2 2 -> 3, p3 3 -> 4, p4 4 -> 5, 3 more"
    )


def test_an_origin_of_another_shape_has_no_differences():
    assert process_differences({"versions": 3, "world_size": True}, {"torch": "2"}, 1) == {}
    assert process_differences({"versions": {"torch": 2}}, {"torch": "2"}, 1) == {}


def test_only_numbers_are_named_of_hyperparameters():
    then = {"lr": 0.1, "token": "old", "depth": 3, "gone": 1, "name": 2}
    now = {"lr": 0.01, "token": "new", "depth": 3, "name": "x", "fresh": 1}
    assert changed_numbers(then, now) == {"lr": (0.1, 0.01)}


def test_the_wait_names_bytes_rate_time_and_the_limit():
    status = Uploading(1, 0.0, "checkpoint-9", 100.0, 2 * 10**9, 3 * 10**9, waiting=2)
    assert wait_line(status, 120.0, 600) == (
        "waits for the store: checkpoint-9, 2.00 GB of 3.00 GB, 100.00 MB/s, 10 s left, then 2"
        " more; at most 600 s (drain_timeout)"
    )
    assert wait_line(None, 0.0, 600) == "waits for the store, at most 600 s (drain_timeout)"
    assert wait_line(Uploading(1, 0.0, waiting=1), 0.0, 600) == (
        "waits for the store, then 1 more, at most 600 s (drain_timeout)"
    )
    failed = wait_line(Uploading(1, 0.0, error="refused", waiting=1), 0.0, 600)
    assert failed.endswith("; the last try failed: refused")
    before_bytes = Uploading(1, 0.0, "checkpoint-9", 100.0, 0, 3 * 10**9)
    assert "0 B of 3.00 GB; at most" in wait_line(before_bytes, 101.0, 600)


def test_the_end_counts_and_names_the_command_that_shows_it():
    assert end_line(config(), saved=0, kept=0, waits=False) == "saved no checkpoint"
    assert end_line(config(), saved=12, kept=3, waits=False) == (
        "saved 12 checkpoints, keeps 3, in /ck. Look: bt-lightning checkpoints list --dir /ck"
    )
    assert end_line(config("s3://b/runs", "p"), saved=1, kept=1, waits=False) == (
        "saved 1 checkpoint, keeps 1, all in s3://b/runs. Look: bt-lightning checkpoints list"
        " --store s3://b/runs --project p --job-id j1"
    )
    assert end_line(config("s3://b/runs"), saved=1, kept=1, waits=True) == (
        "saved 1 checkpoint, keeps 1; bt-lightning run sends them to s3://b/runs"
    )
