"""What every store promises, in one suite: a new store adds a class with one fixture, no tests."""

from __future__ import annotations

import os
import urllib.request
import uuid

import fsspec
import pytest

from bt_lightning import file_limits
from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
)
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import MANIFEST
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.backends.gcs import GcsStore
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.backends.obstore_client import NativeStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.interface import ObjectInfo, read_any
from bt_lightning.store.open_store import open_store
from bt_lightning.store.retry import LateStore, RetryingStore
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.store.transfer.publish import publish
from bt_lightning.store.transfer.unpublish import unpublish

ODD = "epoch=0-step=10/val_loss=0.25@2/a b+c%20d#e[1]*\u00e9\u6f22.bin"
MIB = 1024 * 1024


class StoreContract:
    """Subclasses give `connect`: each call opens a new client on the same, empty place."""

    @pytest.fixture
    def connect(self):
        raise NotImplementedError

    @pytest.fixture
    def store(self, connect):
        return connect()

    def test_a_signed_url_lets_anybody_read_who_has_it(self, store):
        store.put("a/b c", b"bytes")
        url = store.sign("a/b c", 60)
        if url.startswith(("http", "file")):
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.read() == b"bytes"
        else:  # nothing is signed there
            assert "://" in url
            assert url.endswith("/a/b c")

    def test_an_empty_store_holds_nothing_and_says_so_without_an_error(self, store):
        assert store.read("nothing/here") is None
        assert list(store.list("")) == []
        assert list(store.list("nothing")) == []
        store.delete([])
        store.delete(["nothing/here"])

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 512], ids=len)
    def test_what_is_put_is_read_and_listed_with_its_size(self, store, data):
        store.put("a/b/key", data)
        assert store.read("a/b/key") == data
        assert list(store.list("a")) == [ObjectInfo("a/b/key", len(data))]

    def test_put_replaces(self, store):
        store.put("key", b"a longer value")
        store.put("key", b"new")
        assert store.read("key") == b"new"
        assert list(store.list("")) == [ObjectInfo("key", 3)]

    def test_put_new_takes_a_free_key(self, store):
        store.put_new("a/key", b"one")
        assert store.read("a/key") == b"one"

    def test_put_new_of_the_same_bytes_is_a_success(self, store):
        """A first try whose answer was lost must not fail the second one."""
        store.put_new("a/key", b"one")
        store.put_new("a/key", b"one")
        assert store.read("a/key") == b"one"
        assert list(store.list("")) == [ObjectInfo("a/key", 3)]

    def test_put_new_of_other_bytes_is_refused_and_changes_nothing(self, store, connect):
        """The manifest's last line of defence: two checkpoints must never share a folder."""
        store.put_new("a/key", b"one")
        for client in (store, connect()):
            with pytest.raises(CheckpointExistsError, match="a/key"):
                client.put_new("a/key", b"other")
        assert store.read("a/key") == b"one"
        assert list(store.list("")) == [ObjectInfo("a/key", 3)]

    def test_put_new_takes_a_key_that_was_deleted(self, store):
        store.put_new("key", b"one")
        store.delete(["key"])
        store.put_new("key", b"two")
        assert store.read("key") == b"two"

    def test_an_object_that_is_too_large_to_be_any_of_ours_is_not_read(self, store):
        """Whoever may write to a store may put anything under our names."""
        data = b"x" * (file_limits.RECORD.size + 1)
        store.put("a/record", data)
        store.put(f"a/{MANIFEST}", data)
        with pytest.raises(CheckpointCorruptError, match=r"a/record.* more than 1,048,576 bytes"):
            store.read("a/record")
        assert read_any(store, "a/record") == b""
        assert store.read(f"a/{MANIFEST}") == data
        assert store.size("a/record") == len(data)
        store.delete(["a/record"])
        assert read_any(store, "a/record") is None

    def test_a_folder_is_not_an_object(self, store):
        store.put("a/b", b"x")
        assert store.read("a") is None

    def test_one_request_fills_several_pieces_of_memory(self, store):
        data = os.urandom(700_000)
        store.put("key", data)
        buffer = bytearray(600_000)
        view = memoryview(buffer)
        targets = [view[:1], view[1:1], view[1:400_000], view[400_000:600_000]]
        store.read_into("key", 50_000, *targets)
        assert buffer == data[50_000:650_000]

    def test_what_it_says_has_arrived_is_there(self, store):
        data = os.urandom(2 * BLOCK_BYTES + 9)
        store.put("key", data)
        buffer, told = bytearray(len(data) - 5), []
        view = memoryview(buffer)

        def on_progress(count):
            told.append(count)
            assert buffer[:count] == data[5 : 5 + count]

        store.read_into("key", 5, view[:7], view[7:], on_progress=on_progress)
        assert buffer == data[5:]
        assert sorted(set(told)) in ([], [0], [0, BLOCK_BYTES, 2 * BLOCK_BYTES])

    def test_a_file_goes_there_and_back(self, store, tmp_path, send, download):
        source, target = tmp_path / "source", tmp_path / "target"
        for data in (b"", b"x" * 1000):
            source.write_bytes(data)
            send(store, source, "folder/file")
            download(store, "folder/file", target)
            assert target.read_bytes() == data
            assert store.read("folder/file") == data
            assert list(store.list("")) == [ObjectInfo("folder/file", len(data))]
            target.unlink()

    def test_a_big_file_goes_there_and_back(self, store, tmp_path, send, download):
        source, target = tmp_path / "source", tmp_path / "target"
        data = os.urandom(MIB) * 20 + b"tail"
        source.write_bytes(data)
        send(store, source, "big")
        assert list(store.list("")) == [ObjectInfo("big", len(data))]
        download(store, "big", target)
        assert target.read_bytes() == data

    def test_a_file_that_is_not_there_is_an_error_and_not_an_empty_file(
        self, store, tmp_path, download
    ):
        with pytest.raises(CheckpointNotFoundError, match="nothing/here"):
            download(store, "nothing/here", tmp_path / "target")

    def test_a_source_that_is_damaged_is_an_error_and_makes_no_object(self, store, tmp_path):
        file = tmp_path / "source"
        file.write_bytes(b"x" * 1000)
        entry = digest_file(file, "source")
        file.write_bytes(b"x" * 999 + b"y")
        with FileSource(file, entry) as source, pytest.raises(CheckpointCorruptError):
            store.send(source, "a/key")
        assert store.read("a/key") is None
        assert list(store.list("")) == []

    def test_a_list_holds_its_folder_and_no_other(self, store):
        for key in ("job/1", "job/sub/2", "job-2/3", "jobs/4", "5"):
            store.put(key, b"x")
        assert {info.key for info in store.list("job")} == {"job/1", "job/sub/2"}
        assert {info.key for info in store.list("job/sub")} == {"job/sub/2"}
        assert len(list(store.list(""))) == 5

    def test_keys_with_odd_characters_are_kept_to_the_letter(self, store, tmp_path, send, download):
        """Checkpoint names hold metrics, and metrics hold anything."""
        store.put(ODD, b"x")
        assert store.read(ODD) == b"x"
        assert [info.key for info in store.list(ODD.split("/", maxsplit=1)[0])] == [ODD]
        download(store, ODD, tmp_path / "target")
        store.put_new(ODD + "2", b"y")
        send(store, tmp_path / "target", ODD)
        store.delete([ODD])
        assert [info.key for info in store.list("")] == [ODD + "2"]

    def test_delete_takes_what_is_there_and_passes_over_what_is_not(self, store):
        """A missing object among them must not keep the others alive."""
        for key in ("a/1", "a/2", "b/3"):
            store.put(key, b"x")
        store.delete(["a/1", "a/missing", "no/such", "a/2"])
        assert [info.key for info in store.list("")] == ["b/3"]
        store.delete(("b/3", "b/3"))
        assert list(store.list("")) == []
        assert list(store.list("b")) == []

    def test_what_another_client_does_is_seen_at_once(self, store, connect):
        """A cached listing would hide a checkpoint at the resume, and lose the run's progress."""
        other = connect()
        assert list(store.list("")) == []
        assert store.read("a/key") is None
        other.put("a/key", b"1")
        assert store.read("a/key") == b"1"
        assert [info.key for info in store.list("a")] == ["a/key"]
        other.put("a/key", b"22")
        other.put("a/new", b"3")
        assert store.read("a/key") == b"22"
        assert {info.size for info in store.list("a")} == {2, 1}
        other.delete(["a/key"])
        assert store.read("a/key") is None
        assert [info.key for info in store.list("a")] == ["a/new"]

    def test_the_name_is_a_url_and_keys_are_named_in_errors(self, store, tmp_path, download):
        assert "://" in store.name
        with pytest.raises(CheckpointError) as caught:
            download(store, "no/key", tmp_path / "x")
        assert f"{store.name}/no/key" in str(caught.value)

    @pytest.mark.parametrize("prefix", ["", "training_projects/p/jobs/j/rank-0"])
    def test_a_checkpoint_is_published_found_fetched_and_deleted(
        self, store, make, tmp_path, prefix
    ):
        checkpoint = make(tmp_path / "one", "run/checkpoint-1")
        assert publish(store, prefix, checkpoint) == "run/checkpoint-1"
        assert publish(store, prefix, checkpoint) == "run/checkpoint-1"
        listing = list_job(store, prefix)
        assert listing.committed == {"run/checkpoint-1": checkpoint.manifest.to_bytes()}
        assert listing.unfinished == frozenset()
        final = tmp_path / "other" / "back"
        fetch(store, prefix, "run/checkpoint-1", tmp_path / "other", final)
        assert verify(final) == checkpoint.manifest
        assert (final / MANIFEST).read_bytes() == checkpoint.manifest.to_bytes()
        unpublish(store, prefix, "run/checkpoint-1")
        unpublish(store, prefix, "run/checkpoint-1")
        assert list(store.list("")) == []


class TestLocalStore(StoreContract):
    @pytest.fixture
    def connect(self, tmp_path):
        return lambda: LocalStore(tmp_path / "a store")


class TestFileUrl(StoreContract):
    @pytest.fixture
    def connect(self, tmp_path):
        return lambda: open_store(f"file://{tmp_path}/store")


class TestMemory(StoreContract):
    @pytest.fixture
    def connect(self):
        url = f"memory://{uuid.uuid4().hex}"
        return lambda: FsspecStore(url, {})


class TestS3(StoreContract):
    @pytest.fixture
    def connect(self, s3, s3_url):
        return lambda: open_store(s3_url, s3.options)


class TestSeaweedFS(StoreContract):
    @pytest.fixture
    def connect(self, weed, tmp_path):
        url = f"s3://bucket/{uuid.uuid4().hex}"
        return lambda: RetryingStore(
            LateStore(lambda: S3Store(url, weed.options, tmp_path / "journal", part_bytes=8 * MIB))
        )


class TestRetryingStore(StoreContract):
    @pytest.fixture
    def connect(self, tmp_path):
        def never(_):
            msg = "nothing failed, so nothing waits"
            raise AssertionError(msg)

        return lambda: RetryingStore(LocalStore(tmp_path / "store"), sleep=never)


LARGE = pytest.mark.filterwarnings(
    "ignore:Sending a large body directly:ResourceWarning"
)  # aiohttp's


@LARGE
class TestAzureStore(StoreContract):
    """Control through adlfs, bytes through obstore."""

    @pytest.fixture
    def connect(self, azurite):
        filesystem = fsspec.filesystem("az", **azurite, skip_instance_cache=True)
        container = uuid.uuid4().hex
        filesystem.mkdir(container)
        return lambda: open_store(f"az://{container}/root", azurite)

    def test_its_bytes_go_through_the_native_client(self, store):
        assert isinstance(store, NativeStore)


@LARGE
class TestGcsStore(StoreContract):
    """Control through gcsfs, bytes through obstore."""

    @pytest.fixture
    def connect(self, gcs):
        bucket = gcs.bucket()
        return lambda: open_store(f"gs://{bucket}/root", gcs.options)

    def test_its_bytes_go_through_the_native_client(self, store):
        assert isinstance(store, GcsStore)


def test_a_file_of_several_parts_goes_to_s3_and_back(s3, s3_url, tmp_path, send, download):
    """Parts go by another way than small files."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.truncate(100 * MIB)
        stream.seek(100 * MIB - 7)
        stream.write(b"the end")
    store = open_store(s3_url, s3.options)
    send(store, source, "big")
    assert list(store.list("")) == [ObjectInfo("big", 100 * MIB)]
    download(store, "big", target)
    assert digest_file(target, "x") == digest_file(source, "x")
