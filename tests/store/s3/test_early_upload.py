"""Bytes that are sent out of an arena whose memory is wanted back in the middle of it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading

import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    StoreTransientError,
)
from bt_lightning.localdir.digest import digest_file
from bt_lightning.store.transfer import file_source
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.worker.early_upload import LentSource

MIB = 1024 * 1024
SIZE = 20 * MIB + 77


class Wanted(LentSource):
    """Is taken back, and its memory used again, right before the n-th look at it."""

    def __init__(self, memory, entry, countdown, file):
        super().__init__(memoryview(memory), entry)
        self.memory, self.countdown, self.after = memory, countdown, file
        self.lock = threading.Lock()

    def image(self):
        with self.lock:
            self.countdown -= 1
            due = not self.countdown
        if due:
            self.take_back(self.after)
            self.memory[:] = bytes(len(self.memory))
        return super().image()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(SIZE))
    return file


@pytest.fixture
def wanted(file):
    def make(countdown, after=file, damage=None):
        data = bytearray(file.read_bytes())
        entry = digest_file(file, file.name)
        if damage is not None:
            changed = bytearray(data)
            changed[damage] ^= 1
            file.write_bytes(changed)
        return Wanted(data, entry, countdown, after)

    return make


def stored(store):
    target = memoryview(bytearray(store.size("key")))
    store.read_into("key", 0, target)
    return bytes(target)


@pytest.fixture(params=["http", "https"])
def by_scheme(request, connect):
    """A store by TLS too, where OpenSSL insists on the bytes that it has begun to send."""
    if request.param == "http":
        return connect
    proxy, authority = (request.getfixturevalue(name) for name in ("tls_proxy", "certificate"))

    def by_tls(endpoint=proxy.endpoint, **how):
        where = {"endpoint_url": endpoint.replace("http:", "https:"), "region_name": "us-east-1"}
        return connect(client_kwargs={**where, "verify": str(authority[0])}, **how)

    by_tls.tls = proxy.tls
    return by_tls


# three parts, 6 blocks that are summed, and 6 that are sent: 12 looks and more
@pytest.mark.parametrize("countdown", [1, 2, 3, 5, 7, 9, 11])
def test_the_bytes_are_those_of_the_save(by_scheme, wanted, file, countdown):
    store = by_scheme()
    with contextlib.closing(wanted(countdown)) as source:
        store.send(source, "key")
    assert source.countdown <= 0, "it was never taken back"
    assert stored(store) == file.read_bytes()


@pytest.mark.parametrize("part_bytes", [8 * MIB, 32 * MIB])
def test_a_commit_that_failed_ends_it(connect, wanted, uploads_of, part_bytes):
    store = connect(part_bytes=part_bytes)
    with (
        contextlib.closing(wanted(9, after=None)) as source,
        pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors was given up"),
    ):
        store.send(source, "key")
    assert store.size("key") is None
    assert uploads_of(store) == []


def test_a_file_that_is_damaged_is_not_sent_on(connect, wanted, uploads_of):
    store = connect(part_bytes=32 * MIB)
    with (
        contextlib.closing(wanted(10, damage=19 * MIB)) as source,
        pytest.raises(CheckpointCorruptError, match="not those that were saved"),
    ):
        store.send(source, "key")
    assert store.size("key") is None
    assert uploads_of(store) == []


def test_whoever_wants_the_memory_back_never_waits_for_the_network(by_scheme, wanted, file):
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = by_scheme(f"http://127.0.0.1:{server.getsockname()[1]}", part_bytes=32 * MIB)
        source = wanted(-1)
        errors = []

        def send():
            try:
                store.send(source, "key")
            except StoreTransientError as error:
                errors.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        connection, _ = server.accept()
        if hasattr(by_scheme, "tls"):
            connection = by_scheme.tls.wrap_socket(connection, server_side=True)
        connection.recv(1)  # the request has begun, and nobody reads the rest of it
        source.take_back(file)
        source.memory[:] = bytes(SIZE)
        assert sender.is_alive(), "the body went nowhere, and the upload waits"
        connection.close()
        while sender.is_alive():  # its other tries
            server.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                server.accept()[0].close()
        assert len(errors) == 1
        source.close()


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_is_verified_by_its_blocks_in_any_order(file, monkeypatch, mapped):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "as on some network file systems")

    if not mapped:
        monkeypatch.setattr(file_source, "MappedFile", refuse)
    data, entry = file.read_bytes(), digest_file(file, file.name)
    with FileSource(file, entry) as source, source.lend(4 * MIB, 12 * MIB) as lent:
        for start, stop in ((0, 4 * MIB), (9 * MIB, 10 * MIB), (5, 77), (4 * MIB, 6 * MIB), (1, 2)):
            with lent.view(start, stop) as view:
                assert view == data[4 * MIB + start : 4 * MIB + stop]
    changed = bytearray(data)
    changed[9 * MIB] ^= 1
    file.write_bytes(changed)
    with FileSource(file, entry) as source, source.lend(4 * MIB, 12 * MIB) as lent:
        with lent.view(0, 4 * MIB) as view:
            assert view == data[4 * MIB : 8 * MIB]
        with pytest.raises(CheckpointCorruptError, match="block 2"), lent.view(4 * MIB, 5 * MIB):
            pass


def test_a_disk_that_refuses_a_mapped_page_is_asked_the_other_way(file, monkeypatch):
    """One buffer serves all blocks then: none may be taken for another."""

    def refuse(*_):
        raise OSError(errno.EIO, "as a disk says it")

    data, entry = file.read_bytes(), digest_file(file, file.name)
    with FileSource(file, entry) as source, source.lend(0, 12 * MIB) as lent:
        with lent.view(0, MIB) as view:
            assert view == data[:MIB]
        monkeypatch.setattr(file_source.MappedFile, "read", refuse)
        for start in (4 * MIB, 8 * MIB, 4 * MIB, 0):
            with lent.view(start, start + MIB) as view:
                assert view == data[start : start + MIB]
