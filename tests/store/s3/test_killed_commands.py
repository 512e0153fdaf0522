"""A real command, killed by a real SIGKILL before any of its requests to a real S3 server."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from bt_lightning.cli.app import main
from bt_lightning.path_layout import MANIFEST, PROTECTION, job_prefix, jobs_prefix
from bt_lightning.protection_record import Protection
from bt_lightning.store.catalog.protection import protect_stored
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.publish import publish

PREFIX = job_prefix("p", "j", 0)
SOME = ("checkpoints", "delete", "--keep-last", "0", "--job-id", "j")
JOB = ("jobs", "delete", "j")
TRASH = (*SOME, "--trash", "7")
STAYS = {f"{PREFIX}/c-3/{name}" for name in ("model.safetensors", "sub/state.bin")}
STAYS |= {f"{PREFIX}/c-3/{name}" for name in (MANIFEST, PROTECTION)}


def ended(process):
    """Its exit code, as soon as it has one."""
    return process.wait(timeout=60)


def killed_at(proxy, number, words, environ):
    """Run a command and kill it when its request `number` has come, which nobody answers.

    Returns whether it was; else it was done before.
    """
    proxy.reset(**{f"n{number}": "stall"})
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL) as process:
        done = threading.Event()

        def watch():
            ended(process)
            done.set()
            with proxy.changed:
                proxy.changed.notify_all()

        watcher = threading.Thread(target=watch)
        watcher.start()
        proxy.wait_for(lambda: len(proxy.seen) >= number or done.is_set())
        killed = not done.is_set()
        if killed:
            process.send_signal(signal.SIGKILL)
        watcher.join()
        assert killed or process.returncode == 0
    return killed


def say(*args, code=0):
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", [SOME, JOB, TRASH], ids=["some", "job", "trash"])
@pytest.mark.timeout(600)
def test_a_deletion_killed_at_any_request_leaves_whole_ones_and_is_finished_by_the_next(
    weed, proxied, make, tmp_path, monkeypatch, command, every
):
    proxy = proxied(weed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", weed.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = [make(tmp_path / "ck", f"c-{step}", step) for step in (1, 2, 3)]
    environ = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
    for number in itertools.count(1, every):
        url = f"s3://bucket/killed/{tmp_path.name}/{number}"
        store = open_store(url, weed.options)
        for checkpoint in local:
            publish(store, PREFIX, checkpoint)
        protect_stored(store, f"{PREFIX}/c-3", Protection(by="ada"))
        at = ("--store", url, "--project", "p")
        words = [sys.executable, "-m", "bt_lightning", *command, *at, "--yes"]
        killed = killed_at(proxy, number, words, environ)
        assert "c-3" in say("checkpoints", "verify", *at, "--job-id", "j")
        if command == TRASH:
            listed = say("checkpoints", "list", *at, "--job-id", "j", "-o", "csv")
            aside = say("checkpoints", "trash", "list", *at, "--job-id", "j", "-o", "csv")
            assert all(name in listed + aside for name in ("c-1", "c-2"))
        say(*command, *at, "--yes")
        assert "c-3" in say("checkpoints", "verify", *at, "--job-id", "j")
        keys = {info.key for info in store.list(jobs_prefix("p", "j"))}
        assert {key for key in keys if "/.bt_lightning" not in key} == STAYS, number
        if command == TRASH:
            aside = say("checkpoints", "trash", "list", *at, "--job-id", "j", "-o", "csv")
            assert all(name in aside for name in ("c-1", "c-2"))
        if not killed:
            break
    assert number > 25
