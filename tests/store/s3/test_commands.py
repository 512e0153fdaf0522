"""The command line against a real S3 server: every command that changes or reads a store."""

from __future__ import annotations

import json
import urllib.request

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save

from bt_lightning.cli.app import main
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.publish import publish
from tests.store.conftest import SECRET

PREFIX = job_prefix("p", "j", 0)


@pytest.fixture(params=["s3", "weed"])
def bucket(request, monkeypatch, tmp_path):
    """A URL below a bucket, with its server's address and keys where a user has them."""
    server = request.getfixturevalue(request.param)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return request.getfixturevalue("s3_url")


@pytest.fixture
def filled(bucket, make, tmp_path):
    """Three checkpoints of one job."""
    store = open_store(bucket)
    for step in (1, 2, 3):
        files = {"model.safetensors": WEIGHTS, "sub/raw.bin": b"s" * step}
        publish(store, PREFIX, make(tmp_path / "ck", f"c-{step}", step, files=files))
    return bucket


WEIGHTS = save({"w": torch.arange(100.0)})


def say(*args, code=0):
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


JOB = ("--project", "p", "--job-id", "j")


def test_a_life_of_checkpoints_in_a_bucket(filled, tmp_path):
    at = ("--store", filled, *JOB)

    def names():
        listed = json.loads(say("checkpoints", "list", *at, "-ojson"))["checkpoints"]
        return [row["checkpoint_id"] for row in listed]

    assert sorted(names()) == ["c-1", "c-2", "c-3"]
    assert json.loads(say("checkpoints", "show", "c-2", *at, "-ojson"))["step"] == 2
    assert "model.safetensors" in say("checkpoints", "files", "c-2", *at)
    say("checkpoints", "verify", "--deep", *at)

    say("checkpoints", "protect", "c-1", *at, "--why", "paper")
    say("checkpoints", "delete", "c-1", *at, "--yes", code=30)
    say("checkpoints", "unprotect", "c-1", *at)

    say("checkpoints", "copy", "c-3", *at, "--to", filled, "--to-job-id", "k")
    rows = json.loads(say("checkpoints", "list", *at[:-1], "k", "-ojson"))["checkpoints"]
    assert [row["checkpoint_id"] for row in rows] == ["c-3"]
    say("checkpoints", "download", "c-3", *at, "--target-directory", tmp_path / "down")
    assert next((tmp_path / "down").rglob("model.safetensors")).read_bytes() == WEIGHTS

    say("checkpoints", "delete", "c-1", *at, "--yes", "--trash", "3")
    say("checkpoints", "delete", "c-2", *at, "--yes")
    assert names() == ["c-3"]
    say("checkpoints", "trash", "restore", "c-1", *at)
    assert sorted(names()) == ["c-1", "c-3"]
    say("checkpoints", "verify", "--deep", *at)

    say("jobs", "delete", "j", "--store", filled, "--project", "p", "--yes")
    say("checkpoints", "list", *at, "-ojson", code=10)  # there is no such job


def test_a_signed_url_gives_the_bytes_to_a_plain_client(filled):
    rows = json.loads(say("checkpoints", "urls", "--store", filled, *JOB))
    signed = {row["relative_file_name"]: row["url"] for row in rows["checkpoint_artifacts"]}
    url = next(url for name, url in signed.items() if name.endswith("c-3/model.safetensors"))
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() == WEIGHTS


def test_the_doctor_finds_a_bucket_well(bucket, tmp_path):
    assert "All that a save needs works" in say("doctor", "--dir", tmp_path, "--store", bucket)


def test_the_doctor_says_that_the_keys_are_refused(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    with s3.refusing_everybody():
        said = say("doctor", "--dir", tmp_path, "--store", "s3://bucket/x", code=1)
    assert "All that a save needs works" not in said
    assert SECRET not in said
