"""The native clients of Azure and Google, against emulators."""

from __future__ import annotations

import contextlib
import os
import uuid

import fsspec
import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.backends.obstore_client import plain
from bt_lightning.store.interface import ObjectInfo
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.file_source import PIECE_BYTES, BufferedSource


class Memory(BufferedSource):
    """A source of random bytes that turns out damaged from some place on."""

    part_bytes = PIECE_BYTES

    def __init__(self, size, damaged_from=None):
        self.data = os.urandom(size)
        self.size = size
        self.damaged_from = size if damaged_from is None else damaged_from

    @contextlib.contextmanager
    def hold(self, offset, size):
        if offset + size > self.damaged_from:
            msg = "damaged on the disk"
            raise CheckpointCorruptError(msg)
        buffer = bytearray(self.data[offset : offset + size])
        yield memoryview(buffer)
        buffer[:] = bytes(size)  # held bytes are good only while they are held


@pytest.fixture
def container(azurite):
    name = uuid.uuid4().hex
    fsspec.filesystem("az", **azurite, skip_instance_cache=True).mkdir(name)
    return name


@pytest.fixture(params=["azure", "gcs"])
def store(request):
    if request.param == "azure":
        options = request.getfixturevalue("azurite")
        return open_store(f"az://{request.getfixturevalue('container')}/root", options)
    gcs = request.getfixturevalue("gcs")
    return open_store(f"gs://{gcs.bucket()}/root", gcs.options)


def test_several_parts_arrive_in_order_and_any_range_comes_back(store):
    source = Memory(2 * PIECE_BYTES + 12345)
    store.send(source, "a/big")
    assert list(store.list("")) == [ObjectInfo("a/big", source.size)]
    target = bytearray(source.size)
    store.read_into("a/big", 0, memoryview(target))
    assert target == source.data
    part = bytearray(1000)
    store.read_into("a/big", PIECE_BYTES - 500, memoryview(part))
    assert part == source.data[PIECE_BYTES - 500 : PIECE_BYTES + 500]


def test_a_source_that_turns_out_damaged_makes_no_object(store):
    with pytest.raises(CheckpointCorruptError, match="damaged on the disk"):
        store.send(Memory(3 * PIECE_BYTES, damaged_from=2 * PIECE_BYTES), "big")
    with pytest.raises(CheckpointCorruptError, match="damaged on the disk"):
        store.send(Memory(100, damaged_from=0), "small")
    assert list(store.list("")) == []


def test_a_damaged_source_leaves_what_was_there(store):
    before = Memory(PIECE_BYTES + 1)
    store.send(before, "key")
    with pytest.raises(CheckpointCorruptError):
        store.send(Memory(3 * PIECE_BYTES, damaged_from=2 * PIECE_BYTES), "key")
    target = bytearray(before.size)
    store.read_into("key", 0, memoryview(target))
    assert target == before.data


def test_what_is_missing_or_short_is_said(store):
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        store.read_into("nothing", 0, memoryview(bytearray(3)))
    store.put("short", b"abc")
    for offset in (1, 3, 10):
        with pytest.raises(StoreTransientError, match="short"):
            store.read_into("short", offset, memoryview(bytearray(3)))


@pytest.mark.parametrize(
    ("path", "alike"),
    [("a", True), ("a/b c/d=1,@x.y", True), (".a/..b/c..", True), ("a%20b", False)]
    + [(path, False) for path in ("", "a/", "/a", "a//b", "a/./b", "../b", "a/..", "a/.")],
)
def test_only_what_both_clients_spell_alike_goes_by_the_native_one(path, alike):
    assert plain(path) is alike


def test_a_wrong_key_is_permanent_and_told_to_nobody(azurite, container):
    wrong = "d3Jvbmcgb25l" * 5
    text = ";".join(
        f"AccountKey={wrong}" if pair.startswith("AccountKey") else pair
        for pair in azurite["connection_string"].split(";")
    )
    store = open_store(f"az://{container}/root", {"connection_string": text})
    with pytest.raises(StorePermanentError) as caught:
        store.send(Memory(10), "key")
    assert wrong not in str(caught.value)
    assert "Signature" not in str(caught.value)


def test_a_server_that_is_gone_is_transient(azurite, container):
    text = f"AccountName=a;AccountKey={'a2V5' * 5};BlobEndpoint=http://127.0.0.1:1/a"
    store = open_store(f"az://{container}", {"connection_string": text})
    with pytest.raises(StoreTransientError):
        store.send(Memory(10), "key")
