"""Servers that tell little, refuse some requests or never end; disks and systems that are full."""

from __future__ import annotations

import contextlib
import os
import socketserver
import sys
import threading
import types

import pytest

from bt_lightning.errors import StorePermanentError, StoreTransientError
from bt_lightning.store.s3 import checksums, request_errors
from bt_lightning.store.s3.checksums import Checksum, ChecksumChoice
from bt_lightning.store.s3.concurrency import Concurrency
from bt_lightning.store.s3.multipart_uploads import MultipartUploads
from bt_lightning.store.s3.operations import Api
from bt_lightning.store.s3.part_plan import Send
from bt_lightning.store.s3.part_senders import PartSenders
from bt_lightning.store.s3.request_errors import Failure
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.file_source import HeldBytes

MIB = 1024 * 1024
SIZE = 17 * MIB


@pytest.fixture(scope="module")
def data():
    return os.urandom(SIZE)


def bytes_of(store, key):
    target = memoryview(bytearray(store.size(key)))
    store.read_into(key, 0, target)
    return bytes(target)


@pytest.fixture
def refusing(monkeypatch):
    """Let the API refuse some operations of the next clients."""
    real = Api.call

    def refuse(code, *operations):
        transient = code == "InternalError"

        def call(self, operation, **parameters):
            if operation in operations:
                msg = f"{operation} is refused"
                raise Failure(msg, code=code, transient=transient)
            return real(self, operation, **parameters)

        monkeypatch.setattr(Api, "call", call)

    return refuse


@pytest.fixture
def cut_off(connect, proxied, weed, memory, data):
    """Leave an upload of `data` to `key` that lacks its completion."""
    proxy = proxied(weed)
    proxy.reset(**{f"n{number}": "500" for number in range(5, 30)})
    with pytest.raises(StoreTransientError):
        connect(proxy.endpoint).send(memory(data), "key")


def test_who_may_not_list_parts_sends_them_again(connect, cut_off, refusing, memory, data):
    """Else one cut would keep the key from ever being sent."""
    refusing("AccessDenied", "list_parts")
    store = connect()
    store.send(memory(data), "key")
    assert bytes_of(store, "key") == data


@pytest.mark.parametrize("size", [1000, SIZE])
def test_who_may_not_abort_can_send_all_the_same(connect, cut_off, refusing, memory, size):
    refusing("AccessDenied", "abort_multipart_upload")
    store, other = connect(), os.urandom(size)
    store.send(memory(other), "key")
    assert bytes_of(store, "key") == other


def test_an_abort_that_may_work_later_is_tried_later(
    connect, cut_off, refusing, memory, uploads_of
):
    refusing("InternalError", "abort_multipart_upload")
    with pytest.raises(StoreTransientError):
        connect().send(memory(os.urandom(SIZE)), "key")
    refusing("")
    connect().send(memory(b"other"), "key")
    assert uploads_of(connect()) == []


def test_expired_credentials_cost_no_part_that_arrived(connect, cut_off, refusing, memory, data):
    refusing("ExpiredToken", "list_parts", "abort_multipart_upload", "create_multipart_upload")
    with pytest.raises(StorePermanentError):
        connect().send(memory(data), "key")
    refusing("")
    held = []
    store = connect()
    store.send(memory(data, lambda *span: held.append(span)), "key")
    assert held == []
    assert bytes_of(store, "key") == data


def test_an_upload_whose_every_answer_was_lost_is_given_up_at_last(
    connect, proxied, weed, memory, data, uploads_of
):
    proxy = proxied(weed)
    proxy.reset(**{f"n{number}": "lost" for number in range(1, 5)})
    with pytest.raises(StoreTransientError):
        connect(proxy.endpoint).send(memory(data), "key")
    assert len(uploads_of(connect())) == 4
    connect().send(memory(data), "key")
    assert uploads_of(connect()) == []


def test_a_journal_that_cannot_be_written_stops_no_upload(connect, memory, data, tmp_path):
    """The disk may be full until something is in the store."""
    (tmp_path / "file").touch()
    store = connect(journal=tmp_path / "file" / "journal")
    store.send(memory(data), "key")
    assert bytes_of(store, "key") == data


def test_an_upload_that_no_journal_knows_is_given_up_when_it_fails(
    connect, proxied, weed, memory, data, tmp_path, uploads_of
):
    (tmp_path / "file").touch()
    proxy = proxied(weed)
    proxy.reset(**{f"n{number}": "500" for number in range(5, 9)})
    with pytest.raises(StoreTransientError):
        connect(proxy.endpoint, tmp_path / "file" / "journal").send(memory(data), "key")
    assert uploads_of(connect()) == []


def test_a_bucket_in_another_region_is_followed(connect, proxied, weed, memory):
    """S3 has a code of its own for a URL that is signed for the wrong region."""
    proxy = proxied(weed)
    proxy.reset(n1="region")
    store = connect(proxy.endpoint)
    store.send(memory(b"x"), "key")
    assert len(proxy.seen) == 3
    assert bytes_of(store, "key") == b"x"


class _Endless(socketserver.StreamRequestHandler):
    """Answers any range with a whole object of no end, in chunks."""

    def handle(self):
        with contextlib.suppress(ConnectionError):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(64):
                self.wfile.write(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
                self.server.sent += MIB


@pytest.fixture
def endless():
    with socketserver.TCPServer(("127.0.0.1", 0), _Endless) as server:
        server.sent = 0
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_no_more_is_read_than_was_asked_for(connect, endless):
    """A server that ignores ranges may have a hundred gigabytes to give."""
    store = connect(f"http://127.0.0.1:{endless.server_address[1]}")
    target = memoryview(bytearray(1000))
    store.read_into("key", 0, target)
    assert endless.sent < 64 * MIB
    with pytest.raises(StorePermanentError, match="does not know ranges"):
        store.read_into("key", 5, target)


def test_lists_that_never_end_are_left(memory):
    class Endless:
        def call(self, operation, **_):
            return {"IsTruncated": True}

    uploads = MultipartUploads(Endless(), "s3://bucket", None, ChecksumChoice(()))
    uploads.abandon("", ())
    record = types.SimpleNamespace(key="key", upload_id="id", checksum=None)
    assert uploads.parts(record, ()) == {}


def test_a_checksum_that_the_server_passes_over_costs_the_others_nothing(s3, s3_url, memory):
    store = S3Store(s3_url, s3.options)
    _, *others = checksums.installed_checksums()
    store.send(memory(b"x"), "key")
    assert store._uploader._choice.candidates() == (*others, None)


def test_an_old_awscrt_lacks_only_what_it_lacks(monkeypatch):
    old = types.SimpleNamespace(crc32c=lambda data: 0)
    monkeypatch.setitem(sys.modules, "awscrt", types.SimpleNamespace(checksums=old))
    assert [each.name for each in checksums.installed_checksums()] == ["CRC32C", "CRC32"]
    monkeypatch.setitem(sys.modules, "awscrt", None)
    assert [each.name for each in checksums.installed_checksums()] == ["CRC32"]


def test_a_system_that_gives_no_more_threads_is_served_by_those_there_are(monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    parts = [Send(number, 1) for number in range(100)]
    done = []
    PartSenders(Concurrency(MIB)).run(parts, done.append)
    assert sorted(part.offset for part in done) == list(range(100))
    with pytest.raises(RuntimeError, match="start new thread"):
        PartSenders(Concurrency(MIB)).run(parts, done.append)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html><body>Bad gateway",
        b'<?xml version="1.0" encoding="nobody"?><html/>',
        b'<?xml version="1.0" encoding="utf-7"?><html/>',
    ],
)
def test_the_page_of_a_proxy_is_a_transient_error(page):
    failure = request_errors.of_reply(502, page, {})
    assert (failure.code, failure.transient) == ("502", True)


def test_checksums_are_those_of_the_algorithms():
    values = {
        each.name: each.of(HeldBytes(memoryview(b"123456789")))
        for each in checksums.installed_checksums()
    }
    known = {"CRC32": "y/Q5Jg==", "CRC32C": "4waSgw==", "CRC64NVME": "rosUhgp5mIg="}
    assert values == {name: known[name] for name in values}
    assert all(isinstance(each, Checksum) for each in checksums.installed_checksums())
