"""Every request of an upload and of a download fails in turn, on real sockets.

What counts: the object is whole or it is not there, errors are ours, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    StoreError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.store.interface import Reuse
from bt_lightning.store.retry import RetryingStore
from bt_lightning.store.s3 import signed_reads
from bt_lightning.store.s3.signed_reads import SignedReadStore
from bt_lightning.store.s3.signed_reads_credentials import find_access
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.publish import publish

MIB = 1024 * 1024
SIZE = 17 * MIB
KINDS = ["500", "503", "403", "reset", "stall", "truncate", "flip", "lost", "200-error"]
NOTHING = contextlib.nullcontext()


@pytest.fixture(scope="module")
def data():
    return os.urandom(MIB) * 16 + os.urandom(MIB)


@pytest.fixture(scope="module")
def two_parts(data):
    """Bytes for an upload in a first part and a last one."""
    return data[: 9 * MIB]


def bytes_of(store, key):
    size = store.size(key)
    if size is None:
        return None
    target = memoryview(bytearray(size))
    store.read_into(key, 0, target)
    return bytes(target)


def steps():
    """Numbers of the requests of one `send`; the caller stops when none was faulted."""
    return range(1, 30)


@pytest.mark.parametrize(
    ("kind", "resumes"), [(kind, True) for kind in KINDS] + [("403", False), ("lost", False)]
)
def test_any_one_request_of_an_upload_may_fail(
    connect, proxied, weed, memory, two_parts, uploads_of, tmp_path, kind, resumes
):
    proxy = proxied(weed)
    straight = connect()
    journal = tmp_path / "journal" if resumes else None
    for number in steps():
        store = RetryingStore(connect(proxy.endpoint, journal, kind), sleep=lambda _: None)
        key = f"{kind}/{number}"
        proxy.reset(**{f"n{number}": kind})
        refused = kind == "403" or (kind == "flip" and number == 4)  # in the list of parts
        expected = NOTHING
        if refused and number <= 4:  # a server may read a list of parts that was flipped, or not
            error = StorePermanentError
            expected = pytest.raises(error) if kind == "403" else contextlib.suppress(error)
        with expected:
            store.send(memory(two_parts), key)
        assert bytes_of(straight, key) in ({None, two_parts} if refused else {two_parts})
        fewer = len(proxy.seen) < number
        store.abandon("", ())
        assert uploads_of(straight) == [], f"request {number}"
        assert journal is None or list(journal.iterdir()) == []
        if fewer:
            assert number == 5, "create, two parts, complete"
            return
    pytest.fail("the upload has no end")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"403", "200-error"}])
def test_a_small_object_may_fail_once(connect, proxied, weed, memory, kind):
    proxy = proxied(weed)
    proxy.reset(n1=kind)
    connect(proxy.endpoint, kind=kind).send(memory(b"small" * 1000), "key")
    assert bytes_of(connect(), "key") == b"small" * 1000
    assert proxy.count("PUT") == (1 if kind == "truncate" else 2)  # all that counts had come


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in {"403", "flip", "200-error"}]
)
def test_any_one_request_of_a_download_may_fail(connect, proxied, weed, memory, data, kind):
    connect().send(memory(data), "key")
    proxy = proxied(weed)
    store = connect(proxy.endpoint, kind=kind)
    proxy.reset(n1=kind)
    target = memoryview(bytearray(3 * MIB))
    store.read_into("key", 5 * MIB, target)
    assert target == data[5 * MIB : 8 * MIB]
    assert proxy.seen == ["GET", "GET"]


@pytest.mark.parametrize("length", [2, 3])
def test_a_burst_of_refusals_is_outlasted(connect, proxied, weed, memory, data, length, uploads_of):
    """From each request of an upload on, and of a download."""
    proxy = proxied(weed)
    store = RetryingStore(connect(proxy.endpoint), sleep=lambda _: None)
    for number in steps():
        proxy.reset(**{f"n{number + more}": "503" for more in range(length)})
        store.send(memory(data), f"key-{number}")
        if len(proxy.seen) < number:
            break
        assert bytes_of(connect(), f"key-{number}") == data
    assert number == 6
    assert uploads_of(connect()) == []
    proxy.reset(**{f"n{number}": "503" for number in range(1, length + 1)})
    target = memoryview(bytearray(MIB))
    store.read_into("key-1", 0, target)
    assert target == data[:MIB]


@pytest.fixture(params=["s3fs", "plain"])
def reader(request, connect, weed, monkeypatch):
    """What opens a store to read by a client of AWS's, or by plain requests while they serve."""
    monkeypatch.setattr(signed_reads, "_READ_S", 1.0)

    def reader(endpoint, kind):
        def slow():
            return connect(endpoint, kind=kind)

        options = {**weed.options, "client_kwargs": {"endpoint_url": endpoint}}
        asked = find_access("bucket", options, {}, {})
        return (
            slow()
            if request.param == "s3fs"
            else SignedReadStore(slow().name, options, asked, slow)
        )

    return reader


@pytest.mark.parametrize("kind", KINDS)
def test_any_one_request_of_a_fetch_may_fail(
    connect, reader, proxied, weed, make, two_parts, kind, tmp_path
):
    """Manifest, list and ranges: it ends with the right bytes, or with an error and nothing."""
    local = make(tmp_path / "local", files={"large": two_parts, "small": two_parts[:1000]})
    publish(connect(), "p", local)
    proxy = proxied(weed)
    for number in steps():
        store = RetryingStore(reader(proxy.endpoint, kind), sleep=lambda _: None)
        root = tmp_path / str(number)
        root.mkdir()
        proxy.reset(**{f"n{number}": kind})
        failed = None
        try:
            fetch(store, "p", "checkpoint-1", root, root / "back")
        except CheckpointError as error:
            failed = error
        if failed is not None:
            assert kind in {"403", "flip", "200-error", "truncate"}, failed
            assert not (root / "back").exists()
            proxy.reset()
            fetch(store, "p", "checkpoint-1", root, root / "back")
        elif len(proxy.seen) < number:
            break
        assert verify(root / "back").digest == local.manifest.digest
    assert number >= 5, "manifest, list, the large file's ranges, the small file"


@pytest.mark.parametrize("kind", ["500", "503", "reset", "stall", "truncate"])
def test_what_fails_for_long_is_a_transient_error(connect, proxied, weed, memory, data, kind):
    """The worker waits and tries again; an upload goes on with the parts that arrived."""
    connect().send(memory(data), "there")
    proxy = proxied(weed)
    timeouts = {"connect_timeout": 1, "read_timeout": 0.2, "retries": {"max_attempts": 0}}
    store = connect(proxy.endpoint, config_kwargs=timeouts)
    proxy.reset(**{f"n{number}": kind for number in range(1, 100)})
    with pytest.raises(StoreTransientError, match="/there: ") as caught:
        store.read_into("there", 0, memoryview(bytearray(10)))
    assert "Signature" not in str(caught.value)
    with pytest.raises(StoreTransientError, match="/key: ") as caught:
        store.send(memory(data), "key")
    assert "Signature" not in str(caught.value)


def test_a_server_that_refuses_is_not_asked_again(connect, proxied, weed, memory):
    proxy = proxied(weed)
    proxy.reset(n1="403")
    with pytest.raises(StorePermanentError, match="AccessDenied as the test wants it"):
        connect(proxy.endpoint).send(memory(b"x"), "key")
    assert proxy.seen == ["PUT"]


def test_a_try_that_failed_is_gone_on_with(connect, proxied, weed, memory, data):
    proxy = proxied(weed)
    store = connect(proxy.endpoint)
    proxy.reset(**{f"n{number}": "500" for number in range(5, 30)})  # from the completion on
    with pytest.raises(StoreTransientError, match="InternalError"):
        store.send(memory(data), "key")
    assert proxy.count("UploadPart") == 3
    proxy.reset()
    connect(proxy.endpoint).send(memory(data), "key")
    assert proxy.seen == ["ListParts", "Complete"]
    assert bytes_of(connect(), "key") == data


def test_an_upload_that_was_cut_otherwise_is_gone_on_with(connect, proxied, weed, memory, data):
    """What was sent from the arena, in small parts, is ended from the file, in large ones."""
    proxy = proxied(weed)
    proxy.reset(**{f"n{number}": "500" for number in range(5, 30)})
    with pytest.raises(StoreTransientError):
        connect(proxy.endpoint).send(memory(data), "key")
    proxy.reset()
    connect(proxy.endpoint, part_bytes=16 * MIB).send(memory(data), "key")
    assert proxy.seen == ["ListParts", "Complete"]
    assert bytes_of(connect(), "key") == data


def test_other_content_begins_anew_and_drops_the_old_parts(
    connect, proxied, weed, memory, data, uploads_of
):
    """Parts of two contents in one object would be a damaged checkpoint."""
    proxy = proxied(weed)
    proxy.reset(**{f"n{number}": "500" for number in range(5, 30)})
    with pytest.raises(StoreTransientError):
        connect(proxy.endpoint).send(memory(data), "key")
    other = bytes(reversed(data[: 9 * MIB])) + data[9 * MIB :]
    proxy.reset()
    connect(proxy.endpoint).send(memory(other), "key")
    assert proxy.count("UploadPart") == 3
    assert proxy.count("Abort") == 1
    assert bytes_of(connect(), "key") == other
    assert uploads_of(connect()) == []


def test_a_damaged_source_ends_the_upload_at_once(connect, memory, data, uploads_of, tmp_path):
    def held(offset, _):
        if offset:
            msg = "these are not the bytes that were saved"
            raise CheckpointCorruptError(msg)

    store = connect()
    with pytest.raises(CheckpointCorruptError):
        store.send(memory(data, held), "key")
    assert store.size("key") is None
    assert uploads_of(store) == []
    assert list((tmp_path / "journal").iterdir()) == []


def test_abandon_keeps_what_will_be_gone_on_with(connect, proxied, weed, memory, data, uploads_of):
    proxy = proxied(weed)
    for key in ("job/a/kept", "job/b/dropped", "job-2/another"):
        proxy.reset(**{f"n{number}": "500" for number in range(5, 30)})
        with pytest.raises(StoreTransientError):
            connect(proxy.endpoint).send(memory(data), key)
    store = connect()
    store.abandon("job", {"job/a/kept"})
    left = {key.partition("/")[2] for key in uploads_of(store)}
    assert left == {"job/a/kept", "job-2/another"}
    proxy.reset()
    connect(proxy.endpoint).send(memory(data), "job/a/kept")
    assert proxy.count("UploadPart") == 0
    connect(journal=None).abandon("", ())
    assert uploads_of(store) == []


@pytest.mark.parametrize("kind", ["500", "403", "200-error", "lost", "truncate"])
def test_any_one_request_of_a_copy_may_fail(connect, proxied, weed, memory, data, kind):
    """What cannot be copied is sent."""
    straight = connect()
    straight.send(memory(data), "old")
    new = data[: 8 * MIB] + os.urandom(4 * MIB) + data[12 * MIB :]
    ranges = ((0, 8 * MIB), (12 * MIB, 5 * MIB))
    proxy = proxied(weed)
    for number in steps():
        proxy.reset(**{f"n{number}": kind})
        store = RetryingStore(connect(proxy.endpoint, kind=kind), sleep=lambda _: None)
        with (
            contextlib.suppress(StorePermanentError) if kind == "403" else contextlib.nullcontext()
        ):
            store.send(memory(new), f"{kind}/{number}", Reuse("old", ranges))
        assert bytes_of(straight, f"{kind}/{number}") in ({None, new} if kind == "403" else {new})
        if len(proxy.seen) < number:
            assert proxy.count("UploadPartCopy") == 1
            return
    pytest.fail("the copy has no end")


def test_what_is_the_same_does_not_cross_the_network(connect, proxied, weed, memory, data):
    connect().send(memory(data), "old")
    proxy = proxied(weed)
    store = connect(proxy.endpoint)
    held = []
    store.send(memory(data, lambda *span: held.append(span)), "new", Reuse("old", ((0, SIZE),)))
    assert held == []
    assert bytes_of(store, "new") == data


@pytest.mark.parametrize("key", ["gone", "shorter"])
def test_an_object_that_cannot_be_reused_is_sent_whole(connect, memory, data, key):
    store = connect()
    store.send(memory(data[:MIB]), "shorter")
    store.send(memory(data), "new", Reuse(key, ((0, SIZE),)))
    assert bytes_of(store, "new") == data


def test_a_slow_link_is_not_a_stalled_one(connect, memory):
    """Timeouts hold for a piece: a part may take longer than any of them."""
    from bt_lightning.store.bandwidth_limit import Bandwidth

    timeouts = {"connect_timeout": 5, "read_timeout": 0.4}
    store = connect(config_kwargs=timeouts)
    store._uploader._bandwidth = Bandwidth(4.0 * MIB)
    began = time.monotonic()
    store.send(memory(b"x" * (4 * MIB)), "key")
    assert time.monotonic() - began > 0.7


def test_errors_are_ours(connect, memory):
    with pytest.raises(StoreError):
        connect(key="nobody").send(memory(b"x"), "key")
