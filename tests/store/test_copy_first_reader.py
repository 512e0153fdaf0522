"""A node's own files of a checkpoint in the store: used where they are whole, never trusted."""

from __future__ import annotations

import os
import shutil

import pytest

from bt_lightning.errors import CheckpointCorruptError, StoreTransientError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.kept_parts import (
    drop_kept_parts,
    find_kept_part,
    keep_part,
    kept_manifests,
    kept_parts_dir,
    newest_kept,
)
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import MANIFEST
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.checkpoint_reader import NoCopy, StoreReader, read_verified
from bt_lightning.store.transfer.copy_first_reader import with_kept_parts

SIZES = {"shard-0": 2 * BLOCK_BYTES + 5, "shard-1": BLOCK_BYTES, "ranks/00000.json": 3, "empty": 0}


class Counted(NoCopy):
    """A reader that counts what is asked of it."""

    def __init__(self, inner):
        self._inner, self.read, self.checked = inner, [], []
        self.name, self.manifest = inner.name, inner.manifest
        self.piece_bytes, self.connections = inner.piece_bytes, inner.connections
        self.gap_bytes = inner.gap_bytes

    def check(self, entry):
        self.checked.append(entry.path)
        self._inner.check(entry)

    def expect(self, entry, offset, size):
        pass

    def read_into(self, entry, offset, targets, on_progress=int):
        self.read.append((entry.path, offset))
        self._inner.read_into(entry, offset, targets, on_progress)


@pytest.fixture
def data():
    return {path: os.urandom(size) for path, size in SIZES.items()}


@pytest.fixture
def manifest(tmp_path, data):
    entries = []
    for path, content in data.items():
        file = tmp_path / "files" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        entries.append(digest_file(file, path))
    facts = ManifestFacts(step=3, epoch=0, created_at="2030-01-02T03:04:05+00:00")
    return facts.manifest("checkpoint-3", 1, tuple(entries))


@pytest.fixture
def stored(tmp_path, data, manifest):
    store = LocalStore(tmp_path / "store")
    for path, content in data.items():
        store.put(f"p/checkpoint-3/{path}", content)
    store.put(f"p/checkpoint-3/{MANIFEST}", manifest.to_bytes())
    return Counted(StoreReader(store, "p", "checkpoint-3"))


@pytest.fixture
def root(tmp_path, manifest):
    """A node that wrote two of the files."""
    root = tmp_path / "root"
    mine = {path: tmp_path / "files" / path for path in ("shard-0", "ranks/00000.json")}
    keep_part(root, manifest, mine)
    return root


def read_all(reader, data):
    for entry in reader.manifest.files:
        reader.check(entry)
        target = bytearray(entry.size)
        view = memoryview(target)
        read_verified(reader, entry, 0, [view[:7], view[7:]])
        assert target == data[entry.path]


def test_each_file_comes_from_this_node_if_it_wrote_it_else_from_the_store(stored, root, data):
    with with_kept_parts(stored, root) as reader:
        read_all(reader, data)
        assert reader.copy_bytes == SIZES["shard-0"] + SIZES["ranks/00000.json"]
    assert {path for path, _ in stored.read} == {"shard-1", "empty"}
    assert stored.checked == ["shard-1", "empty"]


def test_what_is_kept_is_no_checkpoint(root, manifest):
    assert list_committed(root).found == []
    assert newest_kept(root) == manifest
    assert find_kept_part(root, manifest.with_generation(2)) is None


@pytest.mark.parametrize("harm", ["flipped", "short", "long", "gone", "folder", "link", "pipe"])
def test_a_kept_file_that_is_not_what_was_saved_is_read_from_the_store(
    stored, root, data, manifest, harm, tmp_path
):
    """Others may write to the directory, and disks rot."""
    file = find_kept_part(root, manifest) / "shard-0"
    whole = file.read_bytes()
    if harm == "flipped":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm in {"short", "long"}:
        file.write_bytes(whole[:-1] if harm == "short" else whole + b"x")
    else:
        file.unlink()
    if harm == "folder":
        file.mkdir()
    elif harm == "link":
        file.symlink_to(tmp_path / "nowhere")
    elif harm == "pipe":
        os.mkfifo(file)
    with with_kept_parts(stored, root) as reader:
        read_all(reader, data)
        read_all(reader, data)
    read = {offset for path, offset in stored.read if path == "shard-0"}
    assert read == ({2 * BLOCK_BYTES} if harm == "flipped" else {0})


def test_damage_in_the_store_as_well_is_an_error(stored, root, data, manifest, tmp_path):
    for file in (
        find_kept_part(root, manifest) / "shard-0",
        tmp_path / "store" / "p" / "checkpoint-3" / "shard-0",
    ):
        file.write_bytes(bytes(SIZES["shard-0"]))
    with with_kept_parts(stored, root) as reader, pytest.raises(CheckpointCorruptError):
        read_all(reader, data)


def test_what_is_read_stays_and_all_else_goes(stored, root, manifest, data, tmp_path):
    other = manifest.with_generation(2)
    (tmp_path / "files" / "shard-1").touch()
    keep_part(root, other, {"shard-1": tmp_path / "files" / "shard-1"})
    assert newest_kept(root) == other
    with with_kept_parts(stored, root) as reader:
        read_all(reader, data)
        assert drop_kept_parts(root, keep=[other.digest]) == 0
    assert drop_kept_parts(root, keep=[other.digest]) == 1
    assert [kept.name for kept in kept_manifests(root)] == [other.digest]
    read_all(with_kept_parts(stored, root), data)
    assert drop_kept_parts(root) == 1
    assert kept_manifests(root) == {}


def test_a_folder_without_its_own_manifest_is_never_the_newest(root, manifest):
    kept = find_kept_part(root, manifest)
    shutil.copytree(kept, kept.with_name("0" * 32))
    (kept / MANIFEST).write_bytes(b"{}")
    (kept_parts_dir(root) / "file").write_bytes(b"")
    assert newest_kept(root) is None
    assert set(kept_manifests(root).values()) == {None}


def test_a_store_that_fails_is_an_error_only_for_what_this_node_lacks(root, data, manifest, stored):
    class Down(Counted):
        def read_into(self, *_):
            msg = "down"
            raise StoreTransientError(msg)

    with with_kept_parts(Down(stored), root) as reader:
        whole, block = (memoryview(bytearray(SIZES[path])) for path in ("shard-0", "shard-1"))
        read_verified(reader, manifest.entry("shard-0"), 0, [whole])
        with pytest.raises(StoreTransientError):
            read_verified(reader, manifest.entry("shard-1"), 0, [block])
