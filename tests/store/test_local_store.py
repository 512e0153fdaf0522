"""A folder as a store: durable, whole, and honest about what it cannot read."""

from __future__ import annotations

import errno
import os

import pytest

from bt_lightning.errors import (
    CheckpointExistsError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store import local
from bt_lightning.store.local import LocalStore
from bt_lightning.store.remote import open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["put", "put_new", "send"])
def test_a_write_is_durable_with_every_folder_that_it_made(
    tmp_path, store, send, monkeypatch, method
):
    """After a power cut of the NAS the object must be found, so each new name on the way to it
    must be on the disk, not only the last one.
    """
    (tmp_path / "source").write_bytes(b"x")
    synced = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(os.fstat(fd).st_ino), real(fd))[1])
    if method == "send":
        send(store, tmp_path / "source", "one/two/key")
    else:
        getattr(store, method)("one/two/key", b"x")
    root = tmp_path / "store"
    assert (root / "one/two/key").stat().st_ino in synced
    for folder in (root / "one/two", root / "one", root):
        assert folder.stat().st_ino in synced, f"the names in {folder.name} are not durable"


@pytest.mark.parametrize("method", ["put", "put_new", "send"])
def test_who_deletes_takes_no_folder_from_who_writes_beside_it(
    tmp_path, store, send, monkeypatch, method
):
    """It was empty when it was looked at; the two are processes of different jobs, or lives."""
    (tmp_path / "source").write_bytes(b"x")
    store.put("one/two/other", b"x")
    real, left = local.make_directories, [5]

    def taken(path):
        real(path)
        if left[0]:
            left[0] -= 1
            store.delete([f"{path.relative_to(tmp_path / 'store')}/other"])

    monkeypatch.setattr(local, "make_directories", taken)
    if method == "send":
        send(store, tmp_path / "source", "one/two/key")
    else:
        getattr(store, method)("one/two/key", b"x")
    assert files(tmp_path / "store") == {"one/two/key"}
    left[0] = 1000
    with pytest.raises(StorePermanentError, match="No such file"):
        store.put("three/key", b"x")


def test_a_failed_write_leaves_the_old_object_whole(tmp_path, store, send, monkeypatch):
    store.put("a/key", b"old")
    (tmp_path / "source").write_bytes(b"new")

    def broken(_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    for write in (
        lambda: store.put("a/key", b"new"),
        lambda: send(store, tmp_path / "source", "a/key"),
        lambda: store.put_new("a/key", b"new"),
    ):
        with pytest.raises(StoreTransientError):
            write()
        assert store.read("a/key") == b"old"


def test_two_writers_of_one_new_key_do_not_mix_and_one_learns_that_it_lost(store, monkeypatch):
    """Two nodes with one name is a mistake that people make; it must not tear a manifest.

    The other writer comes while this one waits for its disk.
    """
    real = os.fsync
    others = [LocalStore(store._root)]

    def meanwhile(descriptor):
        real(descriptor)
        if others:
            others.pop().put_new("a/key", b"the other's bytes")

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(CheckpointExistsError):
        store.put_new("a/key", b"mine")
    assert store.read("a/key") == b"the other's bytes"
    assert files(store._root) == {"a/key"}


def test_put_new_works_where_names_cannot_be_exchanged(store, monkeypatch):
    from bt_lightning.localdir import durable

    monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    store.put_new("a/key", b"one")
    store.put_new("a/key", b"one")
    with pytest.raises(CheckpointExistsError):
        store.put_new("a/key", b"two")
    assert files(store._root) == {"a/key"}


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EIO, StoreTransientError), (errno.EACCES, StorePermanentError)]
)
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_store(
    store, monkeypatch, code, kind
):
    """`os.walk` passes over errors unless told not to. An NFS server that is away for a moment
    would look like a store without checkpoints: the run would start afresh.
    """
    store.put("a/b/key", b"x")
    scandir = os.scandir

    def broken(path):
        if str(path).endswith("/b"):
            raise OSError(code, os.strerror(code))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(kind):
        list(store.list("a"))


def test_a_file_in_place_of_the_store_is_a_permanent_error(tmp_path):
    (tmp_path / "store").write_text("x")
    store = LocalStore(tmp_path / "store")
    with pytest.raises(StorePermanentError, match="a/key"):
        store.put("a/key", b"x")
    (tmp_path / "store").unlink()
    store.put("a/key", b"x")
    assert store.read("a/key") == b"x"


def test_delete_takes_the_folders_that_it_empties_and_no_others(tmp_path, store):
    store.put("a/b/c/key", b"x")
    store.put("a/other", b"x")
    store.delete(["a/b/c/key"])
    assert sorted(path.name for path in (tmp_path / "store").rglob("*")) == ["a", "other"]
    store.delete(["a/other"])
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("folder", ["store", "a store", "100%", "a%20b", "\u00e9", "a#b?c"])
def test_the_name_of_a_folder_is_the_url_that_opens_it(tmp_path, folder):
    """People copy it out of a message; another folder would look like an empty store."""
    store = LocalStore(tmp_path / folder)
    store.put("key", b"x")
    assert open_store(store.name).read("key") == b"x"
    assert open_store(f"file://{tmp_path}/{folder}").read("key") == b"x"
