"""Invariant 7: a sender that is killed at any moment loses nothing that had arrived."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("upload_job.py")
REQUESTS = 8
"""Of an upload of 41 MiB in parts of 8: its beginning, six parts, and its completion."""


@pytest.fixture
def check(connect, proxied, weed, memory, tmp_path, uploads_of):
    def check(seed):
        dice = random.Random(seed)
        proxy = proxied(weed)
        store = connect(proxy.endpoint)
        journal = tmp_path / "journal"
        arguments = [store.name, proxy.endpoint, weed.options["secret"], str(journal), str(seed)]
        with subprocess.Popen(
            [sys.executable, str(JOB), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout.readline() == b"ready\n"
            proxy.reset()
            after = dice.randint(0, REQUESTS)
            child.stdin.write(b"go\n")
            child.stdin.flush()
            proxy.wait_for(lambda: len(proxy.seen) >= after)
            time.sleep(dice.random() * 0.03)
            child.kill()
        proxy.wait_for(lambda: proxy.under_way == 0)
        listed = store._api.call("list_multipart_uploads", Prefix=store._key("key"))
        arrived = 0
        for upload in listed.get("Uploads", ()):
            parts = store._api.call("list_parts", Key=upload["Key"], UploadId=upload["UploadId"])
            arrived = len(parts.get("Parts", ()))
        known = any('"upload_id": "' in file.read_text() for file in journal.glob("*.json"))
        done = store.size("key") is not None
        data = random.Random(seed).randbytes(1024 * 1024) * 41
        proxy.reset()
        store.send(memory(data), "key")
        assert proxy.count("UploadPart") == (6 if not known else 0 if done else 6 - arrived)
        target = memoryview(bytearray(len(data)))
        store.read_into("key", 0, target)
        assert target == data
        assert uploads_of(store) == []
        assert list(journal.iterdir()) == []

    return check


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_upload_goes_on_with_the_parts_that_are_missing(check, seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 205))
def test_two_hundred_killed_uploads_go_on(check, seed):
    check(seed)
