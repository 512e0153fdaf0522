"""Nodes with disks of their own and one store: real workers make one checkpoint of all parts."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time

import pytest

from bt_lightning.errors import (
    CheckpointNotFoundError,
    DirectoryFullError,
    PartsMissingError,
)
from bt_lightning.localdir.atomic_directory import gathers
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.kept_parts import find_kept_part, kept_manifests
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.localdir.write_part_files import write_part_files
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix, rank_file, shard_file
from bt_lightning.removal_requester import Requester
from bt_lightning.session.directory_takeover import take_over
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.checkpoint_reader import StoreReader, read_verified
from bt_lightning.store.transfer.copy_first_reader import with_kept_parts
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.store.transfer.unpublish import unpublish
from bt_lightning.worker.parts_on_node import PartsOnNode
from bt_lightning.worker_messages import CommitFailed, Committed, Withdrawn
from tests.bad_store import BadStore
from tests.worker.conftest import eventually
from tests.worker.gathering import RUN, Rank, content_of

pytestmark = pytest.mark.matrix

PREFIX = job_prefix("p", "j", 0)
LATER = "0" * 31 + "2"


class Cluster:
    """Two nodes, each with one rank, and a folder as the store."""

    def __init__(self, tmp_path, url=None, options=None):
        self.url = url or (tmp_path / "store").as_uri()
        self.options = options or {}
        self.store = open_store(self.url, self.options)
        self.made = []
        self.roots = {rank: tmp_path / f"node-{rank}" for rank in range(2)}

    def ranks(self, count=2, **options):
        """A rank on each node, with a worker of its own."""
        options = {"store_url": self.url, "storage_options": self.options} | options
        each = []
        for rank in range(count):
            root = self.roots[rank]
            root.mkdir(exist_ok=True)
            each.append(Rank(root, rank, count, prefix=PREFIX, gather="store", **options))
        self.made += each
        return each

    def committed(self):
        """Folder -> manifest of the whole checkpoints of the store; every byte is looked at."""
        found = {}
        for folder in list_job(self.store, PREFIX).committed:
            try:
                found[folder] = self.check(folder)
            except CheckpointNotFoundError:  # it was deleted meanwhile, as a superseded one is
                assert folder not in list_job(self.store, PREFIX).committed
        return found

    def check(self, folder, root=None):
        """That a checkpoint has the bytes of one save of one run, of all ranks; its manifest."""
        reader = with_kept_parts(StoreReader(self.store, PREFIX, folder), root)
        texts = set()
        ranks = {0, 1}
        for entry in reader.manifest.files:
            reader.check(entry)
            data = bytearray(entry.size)
            read_verified(reader, entry, 0, [memoryview(data)])
            text = bytes(data[: data.index(b";")]) if len(data) > 40 else bytes(data)
            run, number, rank = text.decode().split("/")
            assert data == content_of(run, int(number), int(rank), entry.size)
            texts.add((run, number))
            ranks.discard(int(rank))
        assert len(texts) == 1, f"{folder} is of {texts}"
        assert not ranks, f"{folder} lacks parts of ranks {ranks}"
        paths = {entry.path for entry in reader.manifest.files}
        assert paths == {
            "trainer.json",
            *(shard_file(rank, 2) for rank in range(2)),
            *(rank_file(rank) for rank in range(2)),
        }
        return reader.manifest

    def close(self):
        for rank in self.made:
            rank.close()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def outcomes(ranks, number, timeout_s=60.0):
    return eventually(lambda: all(tuple(r.outcome(number) for r in ranks)), timeout_s) and [
        rank.outcome(number) for rank in ranks
    ]


def saved(ranks, number, name=None):
    for rank in ranks:
        rank.save(number, name)
    return outcomes(ranks, number)


def test_parts_of_two_disks_are_one_checkpoint_in_the_store_and_none_on_a_disk(cluster):
    ranks = cluster.ranks()
    found = saved(ranks, 1)
    assert [type(one) for one in found] == [Committed] * 2
    assert all(one.streamed for one in found)
    manifest = Manifest.from_bytes(found[0].manifest, "")
    assert cluster.committed() == {"checkpoint-1": manifest}
    assert found[1].manifest == found[0].manifest
    assert [event["event"] for event in read_events(ranks[0].root)] == ["streamed", "published"]
    for rank in ranks:
        assert list_committed(rank.root).found == []
        kept = eventually(lambda rank=rank: find_kept_part(rank.root, manifest))
        eventually(lambda kept=kept: (kept / "bt_manifest.json").exists())
        mine = {shard_file(rank.rank, 2), rank_file(rank.rank), "bt_manifest.json"}
        mine |= {"trainer.json"} if rank.rank == 0 else set()
        assert {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()} == mine
        cluster.check("checkpoint-1", rank.root)
    assert {info.key for info in cluster.store.list(PREFIX)} >= {
        f"{PREFIX}/checkpoint-1/trainer.json"
    }
    eventually(lambda: not list(cluster.store.list(f"{PREFIX}/.bt_lightning-parts")))


def test_the_same_id_again_is_the_next_generation_and_each_node_keeps_the_newest(cluster):
    ranks = cluster.ranks()
    for number in (1, 2, 3):
        assert all(isinstance(one, Committed) for one in saved(ranks, number, "last"))
    assert {manifest.generation for manifest in cluster.committed().values()} == {3}
    for rank in ranks:  # the older ones go, in the store and on the nodes
        eventually(lambda rank=rank: len(kept_manifests(rank.root)) == 1)


def test_a_part_frees_its_arena_before_the_others_are_there(cluster):
    first, second = cluster.ranks()
    for number in (1, 2):
        second.save(number)
        eventually(lambda number=number: second.durable(number))
    assert second.outcome(1) is None
    for number in (1, 2):
        first.save(number)
        assert all(isinstance(one, Committed) for one in outcomes([first, second], number))
    assert {m.step for m in cluster.committed().values()} == {1, 2}


@pytest.mark.parametrize("skips", [0, 1])
def test_who_skips_a_save_says_so_to_all_nodes(cluster, skips):
    ranks = cluster.ranks()
    ranks[skips].miss(1)
    ranks[1 - skips].save(1)
    assert isinstance(outcomes([ranks[1 - skips]], 1)[0], Withdrawn)
    assert all(isinstance(one, Committed) for one in saved(ranks, 2))
    assert set(cluster.committed()) == {"checkpoint-2"}


def test_a_node_that_never_comes_is_named_at_the_deadline_and_its_part_is_refused(cluster):
    ranks = cluster.ranks(gather_s=1.0, hosts=("one", "two"))
    ranks[0].save(1)
    (found,) = outcomes(ranks[:1], 1)
    assert isinstance(found.error, PartsMissingError)
    assert "rank 1 on two did not come" in str(found.error)
    ranks[1].save(1)
    assert isinstance(outcomes(ranks[1:], 1)[0], CommitFailed)
    assert cluster.committed() == {}
    assert list(cluster.store.list(f"{PREFIX}/checkpoint-1")) == []
    assert all(isinstance(one, Committed) for one in saved(ranks, 2))


def test_a_store_that_is_down_for_longer_than_the_deadline_loses_nothing(tmp_path):
    with contextlib.closing(BadStore()) as bucket:
        cluster = Cluster(tmp_path, "s3://bucket/jobs", bucket.options)
        with contextlib.closing(cluster):
            ranks = cluster.ranks(gather_s=5.0)
            assert all(isinstance(one, Committed) for one in saved(ranks, 1))
            bucket.become("hanging")
            for rank in ranks:
                rank.save(2)
            eventually(lambda: all(rank.durable(2) for rank in ranks))
            until = time.monotonic() + 8
            while time.monotonic() < until:
                assert [rank.outcome(2) for rank in ranks] == [None, None]
                time.sleep(0.05)
            bucket.become("well")
            assert all(isinstance(one, Committed) for one in outcomes(ranks, 2, 100))
            assert set(cluster.committed()) == {"checkpoint-1", "checkpoint-2"}


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_goes_on_where_it_was(cluster, killed):
    ranks = cluster.ranks()
    victim, other = ranks[killed], ranks[1 - killed]
    victim.save(1)
    eventually(lambda: victim.durable(1))
    os.kill(victim.worker.pid, signal.SIGKILL)
    victim.memory[:] = bytes(len(victim.memory))  # its arena may hold another save by now
    other.save(1)
    assert all(isinstance(one, Committed) for one in outcomes(ranks, 1))
    assert set(cluster.committed()) == {"checkpoint-1"}


def test_removal_is_decided_on_rank_0_and_reaches_the_store_and_both_nodes(cluster):
    ranks = cluster.ranks()
    first = saved(ranks, 1)[0]
    saved(ranks, 2)
    digest = Manifest.from_bytes(first.manifest, "").digest
    request_local_removal(ranks[0].root, digest, Requester.TRAINING)
    ranks[0].worker.wake()
    eventually(lambda: set(list_job(cluster.store, PREFIX).committed) == {"checkpoint-2"})
    for rank in ranks:
        eventually(lambda rank=rank: [p.name for p in kept_manifests(rank.root)] != [digest])
        assert digest not in {path.name for path in kept_manifests(rank.root)}


@pytest.mark.slow
def test_another_node_commits_what_rank_0_left_whole(cluster):
    """Its node is gone, after all that it wrote was sent."""
    ranks = cluster.ranks()
    os.kill(ranks[1].worker.pid, signal.SIGSTOP)
    ranks[0].save(1)
    parts = PartsInStore(cluster.store, PREFIX)
    eventually(lambda: 0 in parts.look(ranks[0].part(1).key.folder).records)
    ranks[0].worker.kill()
    os.kill(ranks[1].worker.pid, signal.SIGCONT)
    ranks[1].save(1)
    assert isinstance(outcomes(ranks[1:], 1, 100)[0], Committed)
    assert set(cluster.committed()) == {"checkpoint-1"}
    assert not list(cluster.store.list(f"{PREFIX}/.bt_lightning-parts"))


def test_what_a_node_keeps_goes_when_somebody_deletes_it_from_the_store(cluster):
    """A worker looks once a minute while nothing is saved."""
    ranks = cluster.ranks()
    saved(ranks, 1)
    parts = PartsInStore(cluster.store, PREFIX)
    for rank in ranks:
        eventually(lambda rank=rank: None not in kept_manifests(rank.root).values())
        PartsOnNode(rank.root, rank.rank).drop_gone(parts.has)
        assert len(kept_manifests(rank.root)) == 1
    unpublish(cluster.store, PREFIX, "checkpoint-1")
    for rank in ranks:
        PartsOnNode(rank.root, rank.rank).drop_gone(parts.has)
        assert not kept_manifests(rank.root)


def test_saves_that_are_superseded_while_the_store_is_away_are_not_sent(tmp_path):
    """Or saves faster than the store would fill every disk."""
    with contextlib.closing(BadStore()) as bucket:
        cluster = Cluster(tmp_path, "s3://bucket/jobs", bucket.options)
        with contextlib.closing(cluster):
            ranks = cluster.ranks()
            saved(ranks, 1)
            bucket.become("rubbish")
            for number in (2, 3, 4):
                for rank in ranks:
                    rank.save(number)
                eventually(lambda n=number: all(rank.durable(n) for rank in ranks))
                if number > 2:
                    ranks[0].worker.remove_when_committed(number - 1)
            bucket.become("well")
            found = [outcomes(ranks, number, 100) for number in (2, 3, 4)]
            assert [type(one) for one in found[2]] == [Committed] * 2
            assert [type(one) for one in found[1]] == [Withdrawn] * 2
            assert "checkpoint-4" in cluster.committed()
            assert "checkpoint-3" not in cluster.committed()
            for rank in ranks:
                eventually(lambda rank=rank: not list(gathers(rank.root).rglob("*.safetensors")))


def test_a_run_that_ended_in_the_middle_leaves_nothing_that_another_run_mixes(cluster):
    """The parts of both runs are of one id; a worker of the older one wakes up later."""
    old = cluster.ranks(drain_s=60.0, gather_s=1.0)
    old[1].save(1, "last")
    eventually(lambda: old[1].durable(1))
    old[0].save(1, "last")
    os.kill(old[1].worker.pid, signal.SIGSTOP)
    eventually(lambda: old[0].durable(1))
    old[0].worker.kill()
    new = cluster.ranks(run=LATER)
    found = saved(new, 1, "last")
    assert [type(one) for one in found] == [Committed] * 2
    os.kill(old[1].worker.pid, signal.SIGCONT)
    assert eventually(lambda: old[1].outcome(1))
    for manifest in cluster.committed().values():
        assert manifest.step == 1
    whole = cluster.committed()
    assert Manifest.from_bytes(found[0].manifest, "").digest in {m.digest for m in whole.values()}


def test_a_node_without_its_disk_reads_all_from_the_store(cluster):
    ranks = cluster.ranks()
    found = saved(ranks, 1)
    for rank in ranks:
        rank.close()
    shutil.rmtree(ranks[1].root)
    manifest = Manifest.from_bytes(found[0].manifest, "")
    for rank in ranks:
        assert cluster.check("checkpoint-1", rank.root).digest == manifest.digest
    again = cluster.ranks(run=LATER)
    assert all(isinstance(one, Committed) for one in saved(again, 2))


def test_a_new_run_waits_for_parts_that_the_old_one_still_sends(tmp_path):
    """Its trainers were killed; what was durable on all nodes is the newest to resume from."""
    with contextlib.closing(BadStore(bytes_s=500_000)) as bucket:
        cluster = Cluster(tmp_path, "s3://bucket/jobs", bucket.options)
        with contextlib.closing(cluster):
            ranks = cluster.ranks(drain_s=60.0)
            assert all(isinstance(one, Committed) for one in saved(ranks, 1))
            bucket.become("slow")
            for rank in ranks:
                rank.save(2)
            eventually(lambda: all(rank.durable(2) for rank in ranks))
            for rank in ranks:
                rank.worker._conn.close()
            take_over(ranks[0].root, 60.0, stored=True, gathers=False)
            bucket.become("well")
            assert set(cluster.committed()) == {"checkpoint-1", "checkpoint-2"}


def test_a_part_that_the_training_process_wrote_itself_is_sent_as_well(cluster):
    """It had no memory for an arena."""
    ranks = cluster.ranks()
    ranks[0].save(1)
    data = {path: content_of(RUN, 1, 1, 500) for path in (shard_file(1, 2), rank_file(1))}
    files = {path: (lambda text=text: [text]) for path, text in data.items()}
    write_part_files(ranks[1].root, ranks[1].part(1), files, None)
    ranks[1].wait_for(1)
    assert all(isinstance(one, Committed) for one in outcomes(ranks, 1))
    assert set(cluster.committed()) == {"checkpoint-1"}


@pytest.mark.parametrize("small", [0, 1])
def test_a_node_whose_disk_is_too_small_sends_its_part_from_memory(cluster, small_disk, small):
    cluster.roots[small] = small_disk(600_000)
    ranks = cluster.ranks()
    for number in (1, 2):
        assert [type(one) for one in saved(ranks, number)] == [Committed] * 2
    assert set(cluster.committed()) == {"checkpoint-1", "checkpoint-2"}
    assert not list(cluster.roots[small].rglob("*.safetensors"))
    assert list(cluster.roots[1 - small].rglob("*.safetensors"))


@pytest.mark.parametrize("small", [0, 1])
def test_what_a_node_keeps_makes_room_for_the_next_part(cluster, small_disk, small):
    cluster.roots[small] = small_disk(1_900_000)  # one part and a half
    ranks = cluster.ranks()
    for number in (1, 2, 3):
        assert [type(one) for one in saved(ranks, number)] == [Committed] * 2
        (kept,) = kept_manifests(cluster.roots[small]).values()
        assert kept.step == number
    assert set(cluster.committed()) == {f"checkpoint-{number}" for number in (1, 2, 3)}


@pytest.mark.slow
def test_a_full_disk_and_a_store_that_is_down_refuse_a_part_for_all(tmp_path, small_disk):
    with contextlib.closing(BadStore()) as bucket:
        cluster = Cluster(tmp_path, "s3://bucket/jobs", bucket.options)
        with contextlib.closing(cluster):
            cluster.roots[1] = small_disk(600_000)
            ranks = cluster.ranks()
            assert all(isinstance(one, Committed) for one in saved(ranks, 1))
            bucket.become("rubbish")
            for rank in ranks:
                rank.save(2)
            (found,) = outcomes(ranks[1:], 2, 100)
            assert isinstance(found.error, DirectoryFullError)
            assert "Sending it to the store instead failed" in str(found.error)
            bucket.become("well")
            (found,) = outcomes(ranks[:1], 2, 100)
            assert "rank 1" in str(found.error)
            assert all(isinstance(one, Committed) for one in saved(ranks, 3))


def _killed_at_random(cluster, seed):
    """Saves of two ranks, of which one worker or both die at a random moment, and a new run."""
    dice = random.Random(seed)
    ranks = cluster.ranks(gather_s=2.0 if not cluster.options else 15.0, shard_size=900_000)
    for rank in ranks:
        rank.save(1)
    assert all(isinstance(one, Committed) for one in outcomes(ranks, 1))
    for rank in ranks:
        rank.save(2)
    time.sleep(dice.random() * (0.15 if not cluster.options else 1.0))
    victims = dice.choice([ranks[:1], ranks[1:], ranks])
    restarts = dice.random() < 0.5  # else the training processes of these die as well
    for rank in victims:
        if restarts:
            os.kill(rank.worker.pid, signal.SIGKILL)
        else:
            rank.worker.kill()
    alive = [rank for rank in ranks if restarts or rank not in victims]
    said = outcomes(alive, 2) if alive else []
    before = cluster.committed()
    assert "checkpoint-1" in before
    told = [Manifest.from_bytes(one.manifest, "") for one in said if isinstance(one, Committed)]
    assert {one.digest for one in told} <= {one.digest for one in before.values()}, "one was lost"
    for rank in ranks:
        rank.close()
    if dice.random() < 0.3:
        shutil.rmtree(ranks[dice.randrange(2)].root)
    again = cluster.ranks(run=LATER)
    assert all(isinstance(one, Committed) for one in saved(again, 3))
    after = cluster.committed()
    assert {m.digest for m in before.values()} <= {m.digest for m in after.values()}
    assert 3 in {m.step for m in after.values()}
    left = [info.key for info in cluster.store.list(PREFIX)]
    folders = {key.removeprefix(f"{PREFIX}/").partition("/")[0] for key in left}
    assert folders <= {*after, ".bt_lightning-parts", ".bt_lightning-lease"}


@pytest.mark.parametrize("seed", range(4))
def test_workers_killed_at_any_moment_lose_tear_and_mix_nothing(cluster, seed):
    _killed_at_random(cluster, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_workers_killed_at_any_moment_many_times(cluster, seed):
    _killed_at_random(cluster, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 210))
def test_workers_killed_at_any_moment_with_s3(tmp_path, seed):
    with contextlib.closing(BadStore()) as bucket:
        cluster = Cluster(tmp_path, "s3://bucket/jobs", bucket.options)
        with contextlib.closing(cluster):
            _killed_at_random(cluster, seed)


def test_gathers_of_long_ago_leave_the_disk(cluster):
    ranks = cluster.ranks()
    for number in range(1, 12):
        saved(ranks, number)
    for rank in ranks:
        eventually(lambda rank=rank: len(list(gathers(rank.root).iterdir())) <= 9)
        eventually(lambda rank=rank: not list(gathers(rank.root).rglob("*.safetensors")))
