"""A sharded checkpoint of a shared directory: each rank's worker sends what its rank wrote."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import uuid

import pytest

from bt_lightning.errors import CheckpointNotFoundError, StoreTransientError
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.list_and_verify_checkpoints import (
    LocalCheckpoint,
    list_committed,
    verify,
)
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import MANIFEST, job_prefix, rank_file, rank_of_shard, shard_file
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.store.transfer.store_claims import publication_of
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker import publish_shards
from bt_lightning.worker.publish_shards import ShardHelper, ShardPublication
from bt_lightning.worker.publisher_tasks_parts import ShardedTasks
from bt_lightning.worker_messages import Committed
from tests.bad_store import BadStore
from tests.worker.conftest import eventually
from tests.worker.gathering import Rank, is_whole

pytestmark = pytest.mark.matrix

PREFIX = job_prefix("p", "j", 0)
RUN = "0" * 31 + "1"


class Counted:
    """A store on another machine, so far as it says, that remembers what was sent through it."""

    distant = True

    def __init__(self, folder):
        self._inner = LocalStore(folder)
        self.sent, self.reused = [], []
        self.down = False

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def send(self, source, key, reuse=None):
        if self.down:
            msg = "it is down"
            raise StoreTransientError(msg)
        self.sent.append(key.removeprefix(f"{PREFIX}/checkpoint-1/"))
        if reuse is not None:
            self.reused.append(reuse.key.removeprefix(f"{PREFIX}/"))
        self._inner.send(source, key, reuse)


@pytest.fixture
def shared(tmp_path):
    """A checkpoint that three ranks wrote into one directory."""
    root = tmp_path / "root"
    root.mkdir()
    ranks = [Rank(root, rank, 3) for rank in range(3)]
    for rank in ranks:
        rank.save(1)
    eventually(lambda: all(tuple(isinstance(r.outcome(1), Committed) for r in ranks)))
    for rank in ranks:
        rank.close()
    (found,) = list_committed(root).found
    return found


@pytest.fixture
def helpers():
    """Makes helpers that end with the test."""
    made = []

    def make(*args):
        made.append(ShardHelper(*args))
        return made[-1]

    yield make
    for helper in made:
        helper.close()


def published(shared, store, *, helped=True, check=lambda: None):
    parts = PartsInStore(store, PREFIX)
    return ShardPublication(parts, shared, None, check, lambda _: None, helped).run()


def is_in(folder, shared, tmp_path):
    place = tmp_path / f"back-{uuid.uuid4().hex}"
    fetch(LocalStore(folder), PREFIX, "checkpoint-1", place, place / "checkpoint-1")
    return verify(place / "checkpoint-1") == shared.manifest


def test_each_rank_sends_its_own_files_and_rank_0_the_rest(shared, tmp_path, helpers):
    stores = [Counted(tmp_path / "store") for _ in range(3)]
    for rank in (1, 2):
        store = stores[rank]
        helper = helpers(rank, lambda store=store: PartsInStore(store, PREFIX))
        helper.committed(shared.manifest, shared.path)
    assert published(shared, stores[0]) == "checkpoint-1"
    assert is_in(tmp_path / "store", shared, tmp_path)
    for rank in range(3):
        mine = {shard_file(rank, 3), rank_file(rank)} | ({"trainer.json"} if not rank else set())
        assert set(stores[rank].sent) == mine
    assert list(stores[0].list(f"{PREFIX}/.bt_lightning-parts")) == []


def test_unchanged_shards_of_every_rank_are_copied_in_the_store(shared, tmp_path, helpers):
    store = Counted(tmp_path / "store")
    helper = helpers(1, lambda: PartsInStore(store, PREFIX))
    again = LocalCheckpoint(shared.path.with_name("again"), shared.manifest.with_generation(2))
    shutil.copytree(shared.path, again.path)
    (again.path / MANIFEST).write_bytes(again.manifest.to_bytes())
    parts = PartsInStore(store, PREFIX)
    for one in (shared, again):
        helper.committed(one.manifest, one.path)
        claim = parts.claim(publication_of(one.manifest), "checkpoint-1", 0)
        eventually(lambda: not helper._open)
        assert 1 in parts.look(claim.save).ranks
    files = (shard_file(1, 3), rank_file(1))  # sent side by side
    assert sorted(store.reused) == sorted(f"checkpoint-1/{file}" for file in files)


def test_what_no_other_worker_sends_rank_0_sends(shared, tmp_path, monkeypatch, helpers):
    monkeypatch.setattr(publish_shards, "_SILENT_S", 0.3)
    store, away = Counted(tmp_path / "store"), Counted(tmp_path / "store")
    away.down = True
    helper = helpers(1, lambda: PartsInStore(away, PREFIX))
    helper.committed(shared.manifest, shared.path)
    published(shared, store)
    assert len(store.sent) == len(shared.manifest.files)
    assert is_in(tmp_path / "store", shared, tmp_path)


def test_without_helpers_nothing_is_waited_for(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(publish_shards, "_SILENT_S", 3600.0)
    published(shared, Counted(tmp_path / "store"), helped=False)
    assert is_in(tmp_path / "store", shared, tmp_path)


def test_one_that_is_deleted_meanwhile_is_not_published(shared, tmp_path):
    store = Counted(tmp_path / "store")
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            delete_directory(shared.path, shared.path.parent)

    with pytest.raises(CheckpointNotFoundError, match="was replaced"):
        published(shared, store, helped=False, check=check)
    assert list_job(store, PREFIX).committed == {}
    PartsInStore(store, PREFIX).end(publication_of(shared.manifest))
    assert list(store.list(f"{PREFIX}/checkpoint-1")) == []


@pytest.mark.parametrize(
    "path", ["trainer.json", "shards.json", "ranks/1.json", "x/ranks/00001.json"]
)
def test_files_of_no_single_rank_are_rank_0s(path):
    assert rank_of_shard(path) is None


@pytest.mark.parametrize(
    ("killed", "how"),
    [
        (None, None),
        (0, signal.SIGKILL),
        (1, signal.SIGKILL),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_workers_of_one_directory_publish_together(tmp_path, killed, how):
    root = tmp_path / "root"
    root.mkdir()
    with contextlib.closing(BadStore()) as bucket, contextlib.ExitStack() as closing:
        url = "s3://bucket/jobs"
        more = {"store_url": url, "storage_options": bucket.options, "prefix": PREFIX}
        ranks = [Rank(root, rank, 2, **more) for rank in range(2)]
        for rank in ranks:
            closing.callback(rank.close)
        store = open_store(url, bucket.options)
        for number in (1, 2):
            for rank in ranks:
                rank.save(number)
            eventually(lambda n=number: all(tuple(rank.outcome(n) for rank in ranks)))
            assert is_whole(root, ranks[0].outcome(number).manifest, RUN, number, 2)
            if killed is not None and number == 1:
                os.kill(ranks[killed].worker.pid, how)
            wanted = f"checkpoint-{number}"

            def is_published(wanted=wanted):
                for rank in ranks:
                    rank.poll()  # starts a worker again
                return wanted in list_job(store, PREFIX).committed

            eventually(is_published, 60.0)
            if how == signal.SIGSTOP and number == 1:
                os.kill(ranks[killed].worker.pid, signal.SIGCONT)
        for number in (1, 2):
            place = tmp_path / f"back-{number}"
            fetch(store, PREFIX, f"checkpoint-{number}", place, place / f"checkpoint-{number}")
            assert is_whole(place, ranks[0].outcome(number).manifest, RUN, number, 2)
        eventually(lambda: not list(store.list(f"{PREFIX}/.bt_lightning-parts")))


def test_what_was_begun_and_is_not_wanted_any_more_leaves_the_store(shared, tmp_path):
    """The publisher died before the manifest, and retention took the checkpoint off the disk."""
    store = LocalStore(tmp_path / "store")
    parts = PartsInStore(store, PREFIX)
    claim = parts.claim(publication_of(shared.manifest), "checkpoint-1", 0)
    entry = shared.manifest.files[0]
    parts.send(claim, [entry], lambda one: FileSource(shared.path / one.path, one))
    root = shared.path.parent
    for waits in (True, False):
        if not waits:
            delete_directory(shared.path, root)
        tasks = ShardedTasks(root, store, PREFIX, ())
        tasks.delete_stored()
        assert bool(list(store.list(f"{PREFIX}/checkpoint-1"))) is waits
        assert (parts.find_claim(claim.save) is not None) is waits
        tasks.leave()


def test_a_helper_never_sends_what_is_not_claimed(shared, tmp_path, helpers):
    store = Counted(tmp_path / "store")
    looked = threading.Event()

    def parts():
        looked.set()
        return PartsInStore(store, PREFIX)

    helper = helpers(1, parts)
    helper.committed(shared.manifest, shared.path)
    assert looked.wait(30)
    delete_directory(shared.path, shared.path.parent)
    eventually(lambda: not helper._open)
    assert store.sent == []


def test_a_damaged_claim_does_not_end_a_helper(shared, tmp_path, helpers):
    store = Counted(tmp_path / "store")
    again = LocalCheckpoint(shared.path.with_name("again"), shared.manifest.with_generation(2))
    shutil.copytree(shared.path, again.path)
    (again.path / MANIFEST).write_bytes(again.manifest.to_bytes())
    damaged = f"{PREFIX}/.bt_lightning-parts/{publication_of(again.manifest)}/claim.json"
    store.put(damaged, b"{")
    helper = helpers(1, lambda: PartsInStore(store, PREFIX))
    helper.committed(again.manifest, again.path)
    eventually(lambda: not helper._open)
    helper.committed(shared.manifest, shared.path)
    PartsInStore(store, PREFIX).claim(publication_of(shared.manifest), "checkpoint-1", 0)
    eventually(lambda: shard_file(1, 3) in store.sent)


def test_a_file_that_the_store_lost_is_sent_again(shared, tmp_path):
    """It is no damage of the checkpoint on the disk."""
    store = Counted(tmp_path / "store")
    inner = store.send

    def lose(source, key, reuse=None):
        inner(source, key, reuse)
        if key.endswith("trainer.json") and store.sent.count("trainer.json") == 1:
            store.delete([key])

    store.send = lose
    with pytest.raises(StoreTransientError, match=r"trainer\.json has None bytes"):
        published(shared, store, helped=False)
    assert published(shared, store, helped=False) == "checkpoint-1"
    assert is_in(tmp_path / "store", shared, tmp_path)


class Busy:
    """A store that refuses the first manifest."""

    def __init__(self, folder):
        self._inner = LocalStore(folder)
        self.refused = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def put_new(self, key, data):
        if key.endswith(MANIFEST) and not self.refused:
            self.refused += 1
            msg = "slow down"
            raise StoreTransientError(msg)
        self._inner.put_new(key, data)


def test_a_whole_save_of_an_earlier_run_is_not_ended_as_the_store_is_busy(shared, tmp_path):
    store = Busy(tmp_path / "store")
    parts = PartsInStore(store, PREFIX)
    earlier = SaveKey(RUN, 7)
    claim = parts.claim(earlier.folder, "checkpoint-7", 0)
    for rank in range(3):
        files = [one for one in shared.manifest.files if (rank_of_shard(one.path) or 0) == rank]
        parts.send(claim, files, lambda one: FileSource(shared.path / one.path, one))
        part = SavePart(key=earlier, rank=rank, world_size=3, fingerprint="a" * 32)
        facts = ManifestFacts(step=7, epoch=0, created_at="2030-01-01T00:00:07+00:00")
        head = SaveHead(checkpoint_id="checkpoint-7", after=0, facts=facts) if not rank else None
        record = PartRecord(part=part, host="h", files=tuple(files), head=head)
        parts.put_record(earlier.folder, rank, record.to_bytes())
    tasks = ShardedTasks(tmp_path / "root", store, PREFIX, ())
    new = SaveKey("f" * 32, 1)
    with pytest.raises(StoreTransientError, match="slow down"):
        tasks.claim_parts(new, "checkpoint-8", 0)
    assert parts.find_claim(earlier.folder) == claim
    assert tasks.claim_parts(new, "checkpoint-8", 0).folder == "checkpoint-8"
    assert store.refused == 1
    assert list(list_job(store, PREFIX).committed) == ["checkpoint-7"]
    tasks.leave()


def test_a_sweep_leaves_what_another_worker_commits_behind_its_listing(shared, tmp_path):
    """Rank 0's worker could not reach the store for so long that another one committed."""

    class Listed(LocalStore):
        def list(self, prefix):
            found = list(super().list(prefix))
            if prefix == PREFIX and parts.find_claim(key.folder) is not None:
                parts.commit(claim, manifest)
            return iter(found)

    parts = PartsInStore(LocalStore(tmp_path / "store"), PREFIX)
    key = SaveKey(RUN, 7)
    claim = parts.claim(key.folder, "checkpoint-1", 0)
    manifest = shared.manifest
    parts.send(claim, manifest.files, lambda one: FileSource(shared.path / one.path, one))
    tasks = ShardedTasks(tmp_path / "root", Listed(tmp_path / "store"), PREFIX, ())
    tasks.delete_stored()
    assert is_in(tmp_path / "store", shared, tmp_path)
    assert tasks.newest("checkpoint-1") == manifest
    tasks.leave()


def test_what_helpers_say_behind_a_publication_goes_with_the_next_look(shared, tmp_path):
    store = LocalStore(tmp_path / "store")
    parts = PartsInStore(store, PREFIX)
    published(shared, store, helped=False)
    save = publication_of(shared.manifest)
    parts.put_record(save, 1, b"{}")
    parts.beat(save, 2, 1)
    tasks = ShardedTasks(shared.path.parent, store, PREFIX, ())
    tasks.delete_stored()
    assert parts.saves() == []
    assert is_in(tmp_path / "store", shared, tmp_path)
    tasks.leave()
