"""Gathers on disks that are too small, and in front of a store."""

from __future__ import annotations

import contextlib
import socket

import pytest

from bt_lightning.errors import DirectoryFullError
from bt_lightning.localdir.atomic_directory import gathers
from bt_lightning.localdir.direct_io import BLOCK
from bt_lightning.localdir.disk_space import usage
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.worker_messages import CommitFailed, Committed, Verify
from tests.worker.conftest import PREFIX, eventually
from tests.worker.gathering import RUN, Rank, is_whole

pytestmark = pytest.mark.matrix

MIB = 1024 * 1024


@pytest.fixture
def ranks():
    """Makes ranks in a directory; they end with the test."""
    made = []

    def make(root, sizes, **options):
        each = [
            Rank(root, rank, len(sizes), shard_size=size, **options)
            for rank, size in enumerate(sizes)
        ]
        made.extend(each)
        return each

    yield make
    for rank in made:
        rank.close()


def save(ranks, number):
    for rank in ranks:
        rank.save(number)
    eventually(lambda: all(rank.outcome(number) for rank in ranks), 60)
    return [rank.outcome(number) for rank in ranks]


def ids(root):
    return {one.manifest.checkpoint_id for one in list_committed(root).found}


def test_what_was_gathered_is_published_and_whole_in_the_store(ranks, tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    root.mkdir()
    each = ranks(root, [MIB, MIB, MIB], store_url=store.as_uri(), prefix=PREFIX)
    for number in (1, 2):
        assert is_whole(root, save(each, number)[0].manifest, RUN, number, 3)
    each[0].worker.drain(60)
    assert set(list_job(LocalStore(store), PREFIX).committed) == {"checkpoint-1", "checkpoint-2"}
    for name in ("checkpoint-1", "checkpoint-2"):
        each[0].worker.ask(Verify(name), 30)
    each[1].worker.drain(30)  # has nothing to send


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_rank_0_makes_room_for_the_parts_of_all(ranks, small_disk, tmp_path, kind):
    root, store = small_disk(9 * MIB, kind) / "root", tmp_path / "store"
    root.mkdir()
    each = ranks(root, [MIB, MIB], store_url=store.as_uri(), prefix=PREFIX)
    for number in range(1, 7):
        found = save(each, number)
        assert isinstance(found[0], Committed), found
        assert is_whole(root, found[0].manifest, RUN, number, 2)
        each[0].worker.drain(60)
    assert len(list_job(LocalStore(store), PREFIX).committed) == 6
    assert len(ids(root)) < 6


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_rank_whose_part_does_not_fit_leaves_nothing_and_all_learn_of_it(ranks, small_disk, kind):
    root = small_disk(3 * MIB, kind) / "root"
    root.mkdir()
    each = ranks(root, [MIB // 8, MIB, MIB, MIB])
    found = save(each, 1)
    assert all(isinstance(one.error, DirectoryFullError) for one in found)
    text = str(found[0].error)  # rank 0's own part finds no room if those of others were first
    assert f"on {socket.gethostname()} has no part of it" in text or "the part of rank 0" in text
    assert ids(root) == set()
    eventually(lambda: usage(gathers(root)) < MIB // 8)
    for rank in each:
        rank.shard_size = MIB // 8
    assert isinstance(save(each, 2)[0], Committed)  # what was in the way is gone
    verify(root / "checkpoint-2")


def test_a_part_whose_record_finds_no_room_leaves_nothing(ranks, small_disk):
    """The disk fills up behind the files of a part, in one of the saves."""
    root = small_disk(4 * MIB, "ext4") / "root"
    root.mkdir()
    (rank,) = ranks(root, [MIB])
    filler = root / "filler"
    for number in range(1, 30):
        rank.save(number, "checkpoint-1")
        while not (any(gathers(root).glob("*/files/trainer.json")) or rank.outcome(number)):
            pass  # the record comes next
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(BLOCK))
        eventually(lambda: rank.durable(number) or rank.outcome(number), 60)  # noqa: B023
        filler.unlink()
        found = eventually(lambda: rank.outcome(number), 60)  # noqa: B023
        if isinstance(found, CommitFailed):
            break
    assert isinstance(found.error, DirectoryFullError)
    eventually(lambda: usage(gathers(root)) < MIB // 8)
    rank.save(100, "checkpoint-1")
    assert isinstance(eventually(lambda: rank.outcome(100), 60), Committed)
