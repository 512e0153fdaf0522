"""What Google's stores have to themselves: tokens, checksums, parts that stay for ever."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.backends.gcs import GcsStore, gcs_store
from bt_lightning.store.interface import ObjectInfo
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.file_source import PIECE_BYTES, BufferedSource
from bt_lightning.worker.publisher_tasks import PublisherTasks

pytestmark = pytest.mark.matrix

_UPLOAD = """
import contextlib, json, sys, time
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.file_source import PIECE_BYTES, BufferedSource

class Stuck(BufferedSource):
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


class Bytes(BufferedSource):
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


def _fails(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.fixture
def url(own_gcs):
    return f"gs://{own_gcs.bucket()}/root"


@pytest.fixture
def store(own_gcs, url):
    return open_store(url, own_gcs.options)


def _killed_upload(gcs, url, key):
    words = [sys.executable, "-c", _UPLOAD, json.dumps([url, gcs.options]), key]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "under way\n"
        finally:
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
    assert store._credential()["token"] not in str(caught.value)
    assert "Authorization" not in str(caught.value)
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


def test_only_uploads_of_its_own_folder_are_given_up_though_the_server_lists_all(
    own_gcs, url, store
):
    _killed_upload(own_gcs, url, "other/model")
    own_gcs.told("listing?heeds=nothing")
    store.abandon("job", ())
    assert len(own_gcs.told()["uploads"]) == 1


def test_a_listing_of_uploads_that_never_ends_is_left(own_gcs, url, store):
    for key in ("job/a", "job/b", "job/c"):
        _killed_upload(own_gcs, url, key)
    own_gcs.told("listing?after=nothing")
    store.abandon("job", ())
    assert len(own_gcs.told()["uploads"]) == 2  # of the page that came again and again


@pytest.mark.parametrize("status", [403, 405])
def test_who_may_not_list_uploads_is_told_so_and_publishes_all_the_same(
    own_gcs, store, make, tmp_path, caplog, status
):
    checkpoint = make(tmp_path / "out", "checkpoint-1")
    own_gcs.told(f"listing?status={status}")
    with pytest.raises(StorePermanentError, match="giving up uploads"):
        store.abandon("job", ())
    duties = PublisherTasks(tmp_path / "out", store, "job", ())
    assert duties.publish_next().manifest == checkpoint.manifest
    duties.leave()
    assert "stay in the store: giving up uploads under gs://" in caplog.text
    assert store.read("job/checkpoint-1/bt_manifest.json") is not None


@pytest.mark.parametrize("act", ["send", "abandon"])
def test_a_control_request_that_fails_once_is_transient(store, monkeypatch, act):
    import aiohttp
    import requests
    from gcsfs.retry import HttpError

    for error in (
        aiohttp.ClientConnectionError(),
        HttpError({"code": 503, "message": "busy"}),
        TimeoutError(),
        ConnectionResetError(104, "reset"),
        requests.exceptions.ProxyError(),
    ):
        monkeypatch.setattr(store._inner.filesystem, "call", _fails(error))
        with pytest.raises(StoreTransientError):
            store.send(Bytes(10), "key") if act == "send" else store.abandon("job", ())


def _hiccup():
    """As gcsfs raises when a machine's own server of tokens does not answer."""
    from gcsfs.retry import HttpError
    from google.auth.exceptions import RefreshError, TransportError

    unreached = TransportError("no route")
    unrefreshed = RefreshError(unreached)
    unrefreshed.__cause__ = unreached
    whole = HttpError({"code": 401, "message": "Invalid Credentials"})
    whole.__cause__ = unrefreshed
    return whole


@pytest.mark.parametrize("leg", ["tokens", "requests"])
def test_a_hiccup_of_the_server_of_tokens_is_transient_on_every_way(store, monkeypatch, leg):
    there = {
        "tokens": (store._credential._credentials, "maybe_refresh"),
        "requests": (store._inner.filesystem, "call"),
    }
    monkeypatch.setattr(*there[leg], _fails(_hiccup()))
    monkeypatch.setattr("google.oauth2.service_account.Credentials.valid", False)
    acts = [lambda: store.send(Bytes(10), "key"), lambda: store.abandon("", ())]
    if leg == "tokens":
        acts = [acts[0], lambda: store.read_into("key", 0, memoryview(bytearray(3)))]
    for act in acts:
        with pytest.raises(StoreTransientError):
            act()


@pytest.mark.parametrize("ask", [1, 2])
def test_a_hiccup_in_the_middle_of_an_upload_is_transient(own_gcs, store, monkeypatch, ask):
    own_gcs.told("tokens?last=60")
    credentials, asked = store._credential._credentials, []
    real = credentials.maybe_refresh

    def refresh():
        asked.append(None)
        if len(asked) == ask:
            raise _hiccup()
        real()

    monkeypatch.setattr(credentials, "maybe_refresh", refresh)
    with pytest.raises(StoreTransientError):
        store.send(Bytes(3 * PIECE_BYTES), "key")
    assert len(asked) >= ask


def test_a_token_that_still_holds_is_used_when_no_other_comes(own_gcs, store, monkeypatch):
    own_gcs.told("tokens?last=280")  # gcsfs wants 300 s, google-auth is content with 225
    store.send(Bytes(10), "one")
    monkeypatch.setattr(store._credential._credentials, "maybe_refresh", _fails(_hiccup()))
    monkeypatch.setattr(store._inner.filesystem, "call", lambda *_, **__: {})
    store.send(Bytes(10), "two")


def test_a_server_of_tokens_that_is_gone_is_transient(own_gcs, url, tmp_path):
    key = json.loads(Path(own_gcs.options["token"]).read_text())
    file = tmp_path / "other.json"
    file.write_text(json.dumps({**key, "token_uri": "http://127.0.0.1:1/token"}))
    store = open_store(url, {**own_gcs.options, "token": str(file)})
    assert isinstance(store, GcsStore)
    for act in (
        lambda: store.send(Bytes(10), "key"),
        lambda: store.read_into("key", 0, memoryview(bytearray(3))),
        lambda: store.size("key"),
    ):
        with pytest.raises(StoreTransientError):
            act()


def test_an_upload_that_somebody_gave_up_is_transient_and_its_id_is_not_told(own_gcs, store):
    source = Bytes(5 * PIECE_BYTES, 3 * PIECE_BYTES, lambda: own_gcs.told("forget"))
    with pytest.raises(StoreTransientError) as caught:
        store.send(source, "key")
    assert "Debug source" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_is_told_though_the_upload_cannot_be_given_up(own_gcs, store):
    def damaged():
        own_gcs.told("forget")
        raise CheckpointCorruptError("damaged on the disk")  # noqa: TRY003, EM101

    with pytest.raises(CheckpointCorruptError, match="damaged on the disk"):
        store.send(Bytes(5 * PIECE_BYTES, 3 * PIECE_BYTES, damaged), "key")


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


def test_the_class_of_gcsfs_that_users_have_does_the_same(own_gcs, url, monkeypatch):
    """The tests choose the other one, as this asks for the kind of a bucket by gRPC."""
    from gcsfs.extended_gcsfs import BucketType, ExtendedGcsFileSystem

    async def look(*_):
        return BucketType.NON_HIERARCHICAL

    monkeypatch.setattr(ExtendedGcsFileSystem, "_get_bucket_type", look)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(known, "gs", ExtendedGcsFileSystem)
    store = open_store(url, own_gcs.options)
    assert isinstance(store, GcsStore)
    assert isinstance(store._inner.filesystem, ExtendedGcsFileSystem)
    source = Bytes(PIECE_BYTES + 1)
    store.send(source, "key")
    store.put_new("new", b"1")
    buffer = bytearray(source.size)
    store.read_into("key", 0, memoryview(buffer))
    assert buffer == source.data
    store.abandon("", ())
    store.delete(["new"])
    assert list(store.list("")) == [ObjectInfo("key", source.size)]


def test_a_server_that_is_gone_is_transient(own_gcs, tmp_path):
    store = open_store(
        "gs://bucket/root", {**own_gcs.options, "endpoint_url": "http://127.0.0.1:1"}
    )
    assert isinstance(store, GcsStore)
    with pytest.raises(StoreTransientError):
        store.send(Bytes(10), "key")


def _who_pays():
    from google.oauth2.credentials import Credentials

    return {"token": Credentials("t", quota_project_id="another")}


def _nobody():
    from google.auth.credentials import AnonymousCredentials

    return {"token": AnonymousCredentials()}


@pytest.mark.parametrize(
    "other", [lambda: {"requester_pays": True}, lambda: {"token": "anon"}, _who_pays, _nobody]
)
def test_what_only_gcsfs_can_do_it_does(own_gcs, other):
    store = open_store("gs://bucket/root", {**own_gcs.options, **other()})
    assert isinstance(store, FsspecStore)


def test_settings_of_fsspec_count_as_well(own_gcs, monkeypatch):
    from fsspec.config import conf

    assert isinstance(open_store("gs://bucket", own_gcs.options), GcsStore)
    monkeypatch.setitem(conf, "gs", {"requester_pays": True})
    assert isinstance(open_store("gs://bucket", own_gcs.options), FsspecStore)


@pytest.mark.parametrize("root", ["bucket//x", "bucket/x//y", "bucket/./y", "bucket/x/../y"])
def test_a_root_that_the_two_spell_differently_stays_with_gcsfs(own_gcs, root):
    assert isinstance(open_store(f"gs://{root}", own_gcs.options), FsspecStore)


@pytest.mark.parametrize(
    ("kind", "native_too"),
    [
        ("ZONAL_HIERARCHICAL", False),
        ("UNKNOWN", False),
        ("HIERARCHICAL", True),
        ("NON_HIERARCHICAL", True),
    ],
)
def test_a_bucket_that_may_be_of_one_zone_stays_with_gcsfs(own_gcs, url, kind, native_too):
    from gcsfs.extended_gcsfs import BucketType

    inner = FsspecStore(url, own_gcs.options)

    async def look(bucket):
        assert bucket in url
        return BucketType[kind]

    inner.filesystem._lookup_bucket_type = look
    assert isinstance(gcs_store(inner, url, own_gcs.options, {}), GcsStore) is native_too
