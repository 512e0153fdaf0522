"""A folder as a store: durable, whole, and honest about what it cannot read."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from bt_lightning.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.backends import local_folder
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.open_store import open_store


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
    real, left = local_folder.made_folder, [5]

    @contextlib.contextmanager
    def taken(root, path):
        with real(root, path) as folder:
            if left[0]:
                left[0] -= 1
                store.delete([f"{path}/other"])
            yield folder

    monkeypatch.setattr(local_folder, "made_folder", taken)
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
    from bt_lightning.localdir import rename_noreplace

    monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)
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

    def broken(folder):
        if Path(f"/proc/self/fd/{folder}").readlink().name == "b":
            raise OSError(code, os.strerror(code))
        return scandir(folder)

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


def everything(root):
    """Every name below `root` with its bytes, or None for a folder; no link is among them."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.fixture
def elsewhere(tmp_path, store):
    """Files of somebody else, which links in a store lead to."""
    folder = tmp_path / "elsewhere"
    (folder / "job").mkdir(parents=True)
    (folder / "job" / "key").write_bytes(b"theirs")
    store.put("p/other", b"ours")
    root = tmp_path / "store"
    (root / "p" / "job").symlink_to(folder / "job")
    (root / "p" / "key").symlink_to(folder / "job" / "key")
    (root / "p" / "loose").symlink_to(tmp_path / "nowhere")
    (root / "p" / "again").symlink_to(root)
    return folder


def test_links_and_what_is_no_file_are_not_listed(tmp_path, store, elsewhere):
    os.mkfifo(tmp_path / "store" / "p" / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "store" / "p" / "socket"))
        assert [info.key for info in store.list("")] == ["p/other"]
        assert store.read("p/socket") is None
        assert store.size("p/socket") is None
    assert store.read("p/pipe") is None
    with pytest.raises(CheckpointNotFoundError):
        store.read_into("p/pipe", 0, memoryview(bytearray(1)))


@pytest.mark.parametrize("key", ["p/key", "p/job/key", "p/loose", "p/loose/key", "p/again/p/other"])
def test_no_read_follows_a_link(store, elsewhere, key):
    """Whoever may write there could have a command show any file of the machine it runs on."""
    for read in (
        lambda: store.read(key),
        lambda: store.size(key),
        lambda: store.read_into(key, 0, memoryview(bytearray(1))),
        lambda: store.sign(key, 60),
        lambda: list(store.list(key)),
    ):
        with pytest.raises(StorePermanentError, match="symbolic link is in the way"):
            read()


@pytest.mark.parametrize("method", ["put", "put_new", "send"])
def test_no_write_follows_a_link(tmp_path, store, send, elsewhere, method):
    """A link in place of a folder or of the sibling that is written would lead a write anywhere."""
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "store" / "p" / ".new.part").symlink_to(elsewhere / "job" / "key")

    def write(key):
        if method == "send":
            send(store, tmp_path / "source", key)
        else:
            getattr(store, method)(key, b"new")

    before = everything(elsewhere)
    for key in ("p/job/key", "p/job/new", "p/job/deep/new", "p/loose/new"):
        with pytest.raises(StorePermanentError, match="symbolic link is in the way"):
            write(key)
    if method == "put_new":
        with pytest.raises(StorePermanentError, match="symbolic link is in the way"):
            write("p/key")
    else:
        write("p/key")  # it takes the place of the link
        assert not (tmp_path / "store" / "p" / "key").is_symlink()
        assert store.read("p/key") == b"new"
    write("p/new")
    assert store.read("p/new") == b"new"
    assert everything(elsewhere) == before
    assert not (tmp_path / "nowhere").exists()


def test_no_deletion_follows_a_link(tmp_path, store, elsewhere):
    before = everything(elsewhere)
    for key in ("p/job/key", "p/loose/key"):
        with pytest.raises(StorePermanentError, match="symbolic link is in the way"):
            store.delete([key])
    store.delete(["p/key", "p/loose", "p/job"])  # the links themselves
    assert everything(elsewhere) == before
    assert sorted(path.name for path in (tmp_path / "store" / "p").iterdir()) == ["again", "other"]


def test_no_key_leads_upwards(tmp_path, store):
    (tmp_path / "outside").write_bytes(b"x")
    store.put("a/key", b"x")
    for key in ("../outside", "a/../../outside", "./a/key"):
        for act in (
            lambda key=key: store.read(key),
            lambda key=key: store.put(key, b"y"),
            lambda key=key: store.delete([key]),
            lambda key=key: list(store.list(key)),
        ):
            with pytest.raises(StorePermanentError):
                act()
    assert (tmp_path / "outside").read_bytes() == b"x"


def test_the_store_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = LocalStore(tmp_path / "store")
    store.put("a/key", b"x")
    assert [info.key for info in store.list("")] == ["a/key"]
    assert (tmp_path / "disk/a/key").read_bytes() == b"x"


def test_a_name_that_a_kill_left_is_not_written_through(tmp_path, store, send):
    """A file that is reused whole has the sibling's name for a moment, as a second one. Killed just
    then, the next writer of that key would empty the committed file if it opened what is there.
    """
    (tmp_path / "source").write_bytes(b"new")
    store.put("a/committed", b"old")
    for key in ("a/key", "a/other"):
        (tmp_path / f"store/a/.{key[2:]}.part").hardlink_to(tmp_path / "store/a/committed")
    send(store, tmp_path / "source", "a/key")
    store.put("a/other", b"new")
    assert store.read("a/committed") == b"old"
    assert store.read("a/key") == store.read("a/other") == b"new"


def test_a_tree_that_is_too_deep_hides_nothing_else(tmp_path, store):
    store.put("p/key", b"x")
    here = os.open(tmp_path / "store" / "p", os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    assert [info.key for info in store.list("")] == ["p/key"]


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


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("modern", [True, False])
def test_the_mode_of_what_is_published_is_as_the_umask_says(tmp_path, umask, modern, monkeypatch):
    from bt_lightning.localdir import rename_noreplace

    if not modern:
        monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)
    before = os.umask(umask)
    try:
        store = LocalStore(tmp_path / "store")
        store.put("a/put", b"1")
        store.put_new("a/new", b"1")
    finally:
        os.umask(before)
    for path in (tmp_path / "store").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
