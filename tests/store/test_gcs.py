"""What Google's stores have to themselves: tokens, checksums, parts that stay for ever."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from bt_lightning.errors import StorePermanentError, StoreTransientError
from bt_lightning.store.gcs import GcsStore, native
from bt_lightning.store.port import ObjectInfo
from bt_lightning.store.remote import FsspecStore, open_store
from bt_lightning.store.sources import PIECE_BYTES, Steady

_UPLOAD = """
import contextlib, json, sys, time
from bt_lightning.store.remote import open_store
from bt_lightning.store.sources import PIECE_BYTES, Steady

class Stuck(Steady):
    part_bytes = PIECE_BYTES
    size = 20 * PIECE_BYTES

    @contextlib.contextmanager
    def hold(self, offset, size):
        if offset == 3 * PIECE_BYTES:
            print("under way", flush=True)
            time.sleep(3600)  # killed here
        yield memoryview(bytes(size))

url, options = json.loads(sys.argv[1])
open_store(url, options).send(Stuck(), sys.argv[2])
"""


class Bytes(Steady):
    """A source of random bytes; `reached` is called before those from `stop` on are lent."""

    part_bytes = PIECE_BYTES

    def __init__(self, size, stop=0, reached=lambda: None):
        self.data = os.urandom(size)
        self.size = size
        self.stop = stop
        self.reached = reached

    @contextlib.contextmanager
    def hold(self, offset, size):
        if offset == self.stop:
            self.reached()
        yield memoryview(self.data)[offset : offset + size]


@pytest.fixture
def url(own_gcs):
    return f"gs://{own_gcs.bucket()}/root"


@pytest.fixture
def store(own_gcs, url):
    return open_store(url, own_gcs.options)


def _killed_upload(gcs, url, key):
    import json

    words = [sys.executable, "-c", _UPLOAD, json.dumps([url, gcs.options]), key]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "under way\n"
        process.kill()


@pytest.mark.parametrize("size", [0, 100, 2 * PIECE_BYTES + 1])
def test_what_the_store_holds_is_compared_with_what_was_sent(own_gcs, store, size):
    store.send(Bytes(size), "key")
    if size:
        own_gcs.told("damage?on=1")
        with pytest.raises(StoreTransientError, match="key does not hold the bytes"):
            store.send(Bytes(size), "key")


def test_a_token_is_renewed_before_it_ends(own_gcs, store):
    own_gcs.told("tokens?last=60")  # any token is about to end
    before = own_gcs.told()["tokens"]
    for number in range(3):
        store.send(Bytes(10), f"{number}")
    assert own_gcs.told()["tokens"] >= before + 3


def test_who_is_refused_is_told_so_and_tells_no_secret(own_gcs, store):
    store.send(Bytes(10), "key")
    own_gcs.told("refuse")
    with pytest.raises(StorePermanentError) as caught:
        store.send(Bytes(10), "other")
    assert "token" not in str(caught.value).lower().replace("invalid_token", "")
    with pytest.raises(StorePermanentError):
        store.read_into("key", 0, memoryview(bytearray(10)))


def test_parts_of_a_killed_upload_are_given_up(own_gcs, url, store):
    for key in ("job/a/model", "job/b c/model", "other/model", "jobs"):
        _killed_upload(own_gcs, url, key)
    assert len(own_gcs.told()["uploads"]) == 4
    store.abandon("job", {"job/a/model"})
    assert sorted(key for _, key in own_gcs.told()["uploads"]) == ["root/jobs", "root/other/model"]
    store.abandon("", ())
    assert own_gcs.told()["uploads"] == []
    assert list(store.list("")) == []


def test_an_upload_that_goes_on_is_not_given_up(own_gcs, store):
    stopped, go_on = threading.Event(), threading.Event()

    def wait():
        stopped.set()
        assert go_on.wait(60)

    source = Bytes(5 * PIECE_BYTES, 3 * PIECE_BYTES, wait)
    sender = threading.Thread(target=store.send, args=(source, "job/model"))
    sender.start()
    assert stopped.wait(60)
    assert len(own_gcs.told()["uploads"]) == 1
    store.abandon("job", ())
    go_on.set()
    sender.join()
    assert list(store.list("")) == [ObjectInfo("job/model", source.size)]


def test_a_server_that_is_gone_is_transient(own_gcs, tmp_path):
    store = open_store(
        "gs://bucket/root", {**own_gcs.options, "endpoint_url": "http://127.0.0.1:1"}
    )
    assert isinstance(store, GcsStore)
    with pytest.raises(StoreTransientError):
        store.send(Bytes(10), "key")


@pytest.mark.parametrize("other", [{"requester_pays": True}, {"token": "anon"}])
def test_what_only_gcsfs_can_do_it_does(own_gcs, other):
    store = open_store("gs://bucket/root", {**own_gcs.options, **other})
    assert isinstance(store, FsspecStore)


def test_a_bucket_of_one_zone_stays_with_gcsfs(own_gcs, url):
    inner = FsspecStore(url, own_gcs.options)

    async def zonal(bucket):
        return bucket in url

    inner.filesystem._is_zonal_bucket = zonal
    assert native(inner, url, own_gcs.options, {}) is inner
