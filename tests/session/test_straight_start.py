"""A start where nodes have disks of their own: shards are read in place, not brought to rank 0."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.kept_parts import keep_part
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.path_layout import TREE, WEIGHTS, rank_file, shard_file
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.restore.load_checkpoint import load_checkpoint
from bt_lightning.session.bt_and_evicted_paths import StorePaths
from bt_lightning.session.parts_of_run import PartsOfRun
from bt_lightning.session.session_config import SessionConfig
from bt_lightning.session.start_point import StartPointSearch
from bt_lightning.session.straight_reads import StraightReads
from bt_lightning.settings import Job
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.publish import publish
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import WorkerConfig
from tests.sharding.sharded_checkpoints import by_rows, write_sharded

JOB = Job(project="p", job="j", node_rank=0)
APART = PartsOfRun(0, ("a", "b", "c", "d"), "store")
"""Ranks with disks of their own."""


@pytest.fixture
def state():
    return {
        "global_step": 3,
        "epoch": 0,
        "state_dict": {"weight": torch.arange(40.0).reshape(10, 4), "bias": torch.ones(3)},
        "optimizer_states": [],
    }


@pytest.fixture
def stored(tmp_path, state):
    """What two sharded saves left in the store, and nothing on the disk."""
    store = LocalStore(tmp_path / "store")
    for step in (3, 6):
        write_sharded(
            tmp_path / "written",
            f"checkpoint-{step}",
            {**state, "global_step": step},
            layout_of=by_rows(4),
            world_size=4,
            own=[{"rank": {"number": rank}} for rank in range(4)],
        )
    for found in list_committed(tmp_path / "written").found:
        publish(store, JOB.prefix, found)
    return tmp_path / "store"


@pytest.fixture
def search(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    config = SessionConfig(
        root=root,
        load_dir=None,
        store_url=(tmp_path / "store").as_uri(),
        upload_mb_s=None,
        content_md5=False,
        job=JOB,
        resume="auto",
        weights_only=None,
        drain_s=5.0,
    )
    worker = Worker(
        WorkerConfig(root=str(root), store_url=config.store_url, prefix=JOB.prefix, drain_s=5.0)
    )

    def decide(first=None, *, parts=None):
        reads = StraightReads(replace(config, parts=parts), first or FirstRead(), world_size=1)
        return StartPointSearch(config, worker, reads).decide()

    yield decide
    worker.kill()


def test_shards_stay_in_the_store_and_each_rank_reads_them_there(tmp_path, stored, search, state):
    start = search(parts=APART)
    assert (start.path, start.folder) == (str(tmp_path / "root" / "checkpoint-6"), "checkpoint-6")
    assert list_committed(tmp_path / "root").found == []
    paths = StorePaths(stored.as_uri(), root=tmp_path / "root", prefix=JOB.prefix)
    paths.pin(start.path, start.folder, start.digest)
    reader = paths.reader(start.path)
    manifest = reader.manifest
    kept = {}
    for path in (shard_file(1, 4), rank_file(1)):
        kept[path] = tmp_path / path.replace("/", "-")
        shutil.copyfile(stored / JOB.prefix / "checkpoint-6" / path, kept[path])
    keep_part(tmp_path / "root", manifest, kept)
    (stored / JOB.prefix / "checkpoint-6" / shard_file(1, 4)).write_bytes(b"")  # it is not read
    reader = paths.reader(start.path)
    loaded = load_checkpoint(reader)
    for name, tensor in state["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    assert reader.copy_bytes > 0


def test_shards_that_are_not_all_there_give_way_to_the_older_checkpoint(tmp_path, stored, search):
    (stored / JOB.prefix / "checkpoint-6" / shard_file(2, 4)).unlink()
    start = search(parts=APART)
    assert start.folder == "checkpoint-3"


def test_where_all_share_a_directory_it_is_fetched_there(tmp_path, stored, search):
    start = search()
    assert (start.path, start.folder) == (str(tmp_path / "root" / "checkpoint-6"), None)
    assert [found.path.name for found in list_committed(tmp_path / "root").found] == [
        "checkpoint-6"
    ]


def test_none_that_is_whole_is_an_error_and_no_fresh_start(stored, search):
    for step in (3, 6):
        (stored / JOB.prefix / f"checkpoint-{step}" / shard_file(0, 4)).unlink()
    with pytest.raises(CheckpointCorruptError, match="none of this job's checkpoints"):
        search(parts=APART)


@pytest.fixture
def whole(tmp_path, state):
    """What two saves of one rank left in the store, and nothing on the disk."""
    store, written = LocalStore(tmp_path / "store"), tmp_path / "written"
    io = BTCheckpointIO()
    for step in (3, 6):
        io.save_checkpoint({**state, "global_step": step}, written / f"checkpoint-{step}")
    for found in list_committed(written).found:
        publish(store, JOB.prefix, found)
    return tmp_path / "store" / JOB.prefix


def test_one_rank_restores_by_the_read_that_verifies(tmp_path, whole, search, state):
    first = FirstRead()
    first.keeps = True
    start = search(first)
    assert (start.path, start.folder) == (str(tmp_path / "root" / "checkpoint-6"), "checkpoint-6")
    assert list_committed(tmp_path / "root").found == []
    (whole / "checkpoint-6" / WEIGHTS).write_bytes(b"")  # it is not read again
    reader = StoreReader(LocalStore(tmp_path / "store"), JOB.prefix, "checkpoint-6")
    loaded = load_checkpoint(reader, first_read=first)
    assert torch.equal(loaded["state_dict"]["weight"], state["state_dict"]["weight"])


def test_damage_in_the_store_gives_way_to_the_older_checkpoint(tmp_path, whole, search):
    for path, content in ((WEIGHTS, flipped), (TREE, flipped)):
        file = whole / "checkpoint-6" / path
        before = file.read_bytes()
        file.write_bytes(content(before))
        first = FirstRead()
        first.keeps = True
        start = search(first)
        assert start.folder == "checkpoint-3"
        note_of(tmp_path).unlink()
        file.write_bytes(before)


def note_of(tmp_path):
    (note,) = (tmp_path / "root" / ".bt_lightning").glob("read_straight.json")
    return note


def test_a_start_that_saved_nothing_is_followed_by_one_that_brings_it(tmp_path, whole, search):
    first = FirstRead()
    first.keeps = True
    assert search(first).folder == "checkpoint-6"
    assert search(first).folder is None
    assert [one.path.name for one in list_committed(tmp_path / "root").found] == ["checkpoint-6"]
    assert search(first).path == str(tmp_path / "root" / "checkpoint-6")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"manifest": 3}', "9" * 10_000_000])
def test_an_odd_note_is_none(tmp_path, whole, search, content):
    first = FirstRead()
    first.keeps = True
    assert search(first).folder == "checkpoint-6"
    note_of(tmp_path).write_text(content)
    assert search(first).folder == "checkpoint-6"


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def test_without_memory_to_keep_it_one_rank_fetches_nothing_twice(whole, search, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr("bt_lightning.restore.first_read.tensors_of_tree", refuse)
    first = FirstRead()
    first.keeps = True
    start = search(first)
    assert start.folder == "checkpoint-6"
