"""Parts of several ranks become one checkpoint, by real workers in one directory."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from bt_lightning.errors import DirectoryFullError, PartsMissingError, TornSnapshotError
from bt_lightning.localdir.atomic_directory import gathers
from bt_lightning.localdir.end_gathers import end_gathers
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.gather_locks import join_gather
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.manifest import Manifest
from bt_lightning.session.directory_takeover import take_over
from bt_lightning.worker_messages import CommitFailed, Committed, Drained, Withdrawn
from tests.worker.conftest import eventually
from tests.worker.gathering import RUN, Rank, is_whole

WORLD = 4
HOST = socket.gethostname()


@pytest.fixture
def ranks(tmp_path):
    """Makes ranks in one directory; they end with the test."""
    made = []

    def make(count=WORLD, root=None, **options):
        place = root or tmp_path / "root"
        place.mkdir(exist_ok=True)
        each = [Rank(place, rank, count, **options) for rank in range(count)]
        made.extend(each)
        return each

    yield make
    for rank in made:
        rank.close()


def outcomes(ranks, number, timeout_s=30.0):
    eventually(lambda: all(rank.outcome(number) for rank in ranks), timeout_s)
    return [rank.outcome(number) for rank in ranks]


def ids(root):
    return {one.manifest.checkpoint_id for one in list_committed(root).found}


def test_parts_of_all_ranks_are_one_checkpoint_that_each_learns_of(ranks):
    each = ranks()
    root = each[0].root
    for rank in each:
        rank.save(1)
    found = outcomes(each, 1)
    assert all(isinstance(one, Committed) for one in found)
    assert len({one.manifest for one in found}) == 1
    assert is_whole(root, found[0].manifest, RUN, 1, WORLD)
    assert all(rank.durable(1) for rank in each)
    assert [event["event"] for event in read_events(root)] == ["durable"]
    eventually(lambda: [p.name for p in (gathers(root) / f"{RUN}-1").glob("part-*")] == [])


def test_a_part_frees_its_arena_before_the_others_are_there(ranks):
    first, second = ranks(2)
    second.save(1)
    eventually(lambda: second.durable(1))
    assert second.outcome(1) is None
    second.save(2)  # into the same arena
    eventually(lambda: second.durable(2))
    first.save(1)
    assert is_whole(first.root, outcomes([first, second], 1)[0].manifest, RUN, 1, 2)
    first.save(2)
    assert is_whole(first.root, outcomes([first, second], 2)[0].manifest, RUN, 2, 2)


def test_the_same_id_again_is_the_next_generation(ranks):
    each = ranks(2)
    for number in (1, 2):
        for rank in each:
            rank.save(number, "last")
    first, second = (outcomes(each, number)[0] for number in (1, 2))
    assert Manifest.from_bytes(first.manifest, "").generation == 1
    assert Manifest.from_bytes(second.manifest, "").generation == 2
    assert is_whole(each[0].root, second.manifest, RUN, 2, 2)


def test_files_with_the_same_content_are_linked(ranks):
    each = ranks(2)
    for number in (1, 2):
        for rank in each:
            image = rank.image(1, f"checkpoint-{number}", content=1)
            rank.worker.commit(
                type(image)(
                    **{
                        **{name: getattr(image, name) for name in image.__slots__},
                        "number": number,
                        "part": rank.part(number),
                    }
                )
            )
        outcomes(each, number)
    root = each[0].root
    for path in ("shard-00001-of-00002.safetensors", "trainer.json"):
        one, other = (root / f"checkpoint-{number}" / path for number in (1, 2))
        assert one.stat().st_ino == other.stat().st_ino
        verify(other.parent)


def test_who_skips_a_save_says_so_and_nobody_waits(ranks):
    each = ranks(3)
    for rank in each[1:]:
        rank.save(1)
    each[0].miss(1)
    assert all(isinstance(one, Withdrawn) for one in outcomes(each[1:], 1))
    assert ids(each[0].root) == set()
    eventually(lambda: each[0].durable(1) or not each[0].worker._unfinished)
    for rank in each:
        rank.save(2)
    assert is_whole(each[0].root, outcomes(each, 2)[0].manifest, RUN, 2, 3)


def test_a_torn_copy_of_one_rank_is_torn_for_all(ranks):
    each = ranks(2)
    each[0].save(1)
    each[1].miss(1, "the state changed", "torn")
    (found,) = outcomes(each[:1], 1)
    assert isinstance(found.error, TornSnapshotError)
    assert f"rank 1 on {HOST}" in str(found.error)


def test_a_withdrawn_part_is_missing_for_all(ranks):
    each = ranks(2)
    os.kill(each[0].worker.pid, signal.SIGSTOP)
    each[0].save(1)
    each[0].worker.withdraw(1)
    each[0].worker.commit(each[0].image(2))
    os.kill(each[0].worker.pid, signal.SIGCONT)
    each[1].save(1)
    eventually(lambda: each[1].durable(1))
    each[1].save(2)
    first, second = outcomes(each, 1)
    assert isinstance(first, Committed | Withdrawn)  # that it had begun already, or not
    assert type(first) is type(second)
    assert isinstance(outcomes(each, 2)[1], Committed)


def test_states_that_differ_are_refused_with_both_ranks(ranks):
    each = ranks(2)
    each[1].fingerprint = "b" * 32
    for rank in each:
        rank.save(1)
    for found in outcomes(each, 1):
        assert isinstance(found.error, PartsMissingError)
        assert "rank 0" in str(found.error)
        assert "rank 1" in str(found.error)
        assert "aaaaaaaa" in str(found.error)
    assert ids(each[0].root) == set()


def test_a_rank_that_never_comes_is_named_at_the_deadline(ranks):
    each = ranks(3, gather_s=1.0, hosts=("one", "two", "three"))
    for rank in each[:2]:
        rank.save(1)
    for found in outcomes(each[:2], 1):
        assert isinstance(found.error, PartsMissingError)
        assert "the part of rank 2 on three did not come within " in str(found.error)
    each[2].save(1)  # too late: it learns the same
    (late,) = outcomes(each[2:], 1)
    assert isinstance(late, CommitFailed)
    assert ids(each[0].root) == set()
    eventually(lambda: not list((gathers(each[0].root) / f"{RUN}-1").glob("files/*")))


def test_a_failed_run_waits_for_parts_that_are_written_and_not_for_those_of_the_dead(ranks):
    first, second = ranks(2, gather_s=600.0)
    first.save(1)
    eventually(lambda: first.durable(1))
    began = time.monotonic()
    first.worker.awaits_parts = False
    assert first.worker.drained(100) == Drained(waiting=(), reason=None)
    assert time.monotonic() - began < 50
    joined = join_gather(gathers(first.root) / f"{RUN}-1", 1)  # as a worker that writes
    began = time.monotonic()
    first.worker.drained(1.5)
    assert time.monotonic() - began >= 1.5
    os.close(joined)
    second.save(1)
    assert is_whole(first.root, outcomes([first, second], 1)[0].manifest, RUN, 1, 2)


def test_a_save_of_many_seconds_is_given_four_times_as_long(ranks):
    """Not by the clock of this test: the deadline is asked of the thread itself."""
    from bt_lightning.localdir.gather_directory import GatherDirectory
    from bt_lightning.worker.gather_parts import DurablePart, GatherThread
    from bt_lightning.worker_messages import WorkerConfig

    (only,) = ranks(1)
    config = WorkerConfig(root=str(only.root), store_url=None, prefix="p", drain_s=1.0)
    thread = GatherThread(GatherDirectory(only.root, 0), config, print, print)
    own = DurablePart(number=1, part=only.part(1), began=0.0, write_s=30.0)
    assert thread.limit_s(own) == 120.0


def test_a_killed_worker_finds_its_part_already_there(ranks):
    first, second = ranks(2)
    second.save(1)
    eventually(lambda: second.durable(1))
    os.kill(second.worker.pid, signal.SIGKILL)
    second.memory[:] = bytes(len(second.memory))  # its arena may hold another save by now
    first.save(1)
    assert is_whole(first.root, outcomes([first, second], 1)[1].manifest, RUN, 1, 2)


def test_another_worker_commits_if_that_of_rank_0_is_dead(ranks):
    first, second = ranks(2)
    first.save(1)
    eventually(lambda: first.durable(1))
    os.kill(first.worker.pid, signal.SIGKILL)  # and nobody starts it again
    second.save(1)
    (found,) = outcomes([second], 1)
    assert is_whole(first.root, found.manifest, RUN, 1, 2)
    (told,) = outcomes([first], 1)  # the next worker of rank 0 learns it
    assert told.manifest == found.manifest


def test_a_worker_of_another_rank_leaves_a_living_one_of_rank_0_in_charge(ranks):
    first, second = ranks(2, gather_s=60.0)
    first.save(1)
    eventually(lambda: first.durable(1))
    os.kill(first.worker.pid, signal.SIGSTOP)
    second.save(1)
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        assert second.outcome(1) is None
    os.kill(first.worker.pid, signal.SIGCONT)
    assert isinstance(outcomes([first, second], 1)[1], Committed)


def test_a_removal_while_parts_are_gathered_is_carried_out_behind_a_newer_one(ranks):
    first, second = ranks(2)
    first.save(1)
    eventually(lambda: first.durable(1))
    first.worker.remove_when_committed(1)
    second.save(1)
    outcomes([first, second], 1)
    for rank in (first, second):
        rank.save(2)
    outcomes([first, second], 2)
    eventually(lambda: ids(first.root) == {"checkpoint-2"})


def test_workers_finish_when_their_trainers_are_gone(ranks):
    """The end of the pipe is how a worker learns it; four workers are in the directory."""
    each = ranks()
    for rank in each:
        rank.save(1)
    for rank in each:
        rank.worker._conn.close()
    eventually(lambda: ids(each[0].root) == {"checkpoint-1"})
    verify(each[0].root / "checkpoint-1")


def test_a_worker_whose_trainer_is_gone_does_not_wait_for_the_part_of_a_dead_one(ranks):
    first, second = ranks(2, gather_s=600.0, drain_s=600.0)
    first.save(1)
    eventually(lambda: first.durable(1))
    second.close()
    process = first.worker._process
    first.worker._conn.close()  # as its trainer dies
    process.join(60)
    assert process.exitcode == 0
    assert ids(first.root) == set()


def test_a_new_run_gives_up_what_is_not_whole_and_commits_what_is(ranks):
    old = ranks(2, gather_s=2.0)
    root = old[0].root
    for rank in old:
        rank.save(1)
    outcomes(old, 1)
    old[0].save(2)
    eventually(lambda: old[0].durable(2))  # its other part never comes
    os.kill(old[0].worker.pid, signal.SIGSTOP)
    end_gathers(root, 5.0)
    os.kill(old[0].worker.pid, signal.SIGCONT)
    assert isinstance(outcomes(old[:1], 2)[0], Withdrawn)
    assert ids(root) == {"checkpoint-1"}
    old[1].save(2)  # of a process that was suspended meanwhile
    assert not isinstance(outcomes(old[1:], 2)[0], Committed)
    for rank in old:
        rank.close()
    new = ranks(2, root=root, run="f" * 32)
    for rank in new:
        rank.save(2)
    assert is_whole(root, outcomes(new, 2)[0].manifest, "f" * 32, 2, 2)


def test_what_all_workers_died_before_is_committed_by_the_next_run(ranks):
    each = ranks(2)
    root = each[0].root
    os.kill(each[0].worker.pid, signal.SIGSTOP)
    each[1].save(1)
    eventually(lambda: each[1].durable(1))
    each[1].worker.kill()
    from bt_lightning.localdir.write_part_files import write_part_files
    from bt_lightning.sharding.save_part import SaveHead
    from tests.worker.gathering import content_of

    image = each[0].image(1)
    head = SaveHead(checkpoint_id="checkpoint-1", after=0, facts=image.facts)
    files = {one.path: lambda size=one.size: [content_of(RUN, 1, 0, size)] for one in image.files}
    write_part_files(root, image.part, files, head)
    each[0].worker.kill()
    take_over(root, 5.0, stored=False)
    assert ids(root) == {"checkpoint-1"}
    assert is_whole(root, verify(root / "checkpoint-1"), RUN, 1, 2)
    take_over(root, 5.0, stored=False)
    assert list(gathers(root).glob("*")) == []


def test_a_nested_id_is_refused_for_all(ranks):
    each = ranks(2)
    for number, name in ((1, "outer"), (2, "outer/inner")):
        for rank in each:
            rank.save(number, name)
    assert isinstance(outcomes(each, 1)[0], Committed)
    for found in outcomes(each, 2):
        assert "may not nest" in str(found.error)


def test_a_disk_without_room_for_one_rank_is_an_error_of_all(ranks):
    each = ranks(2, budget=400_000_000)
    each[1].close()
    each[1] = Rank(each[0].root, 1, 2, budget=300_000)
    for rank in each:
        rank.save(1)
    first, second = outcomes(each, 1)
    assert isinstance(first.error, DirectoryFullError)
    assert f"rank 1 on {HOST} has no part of it" in str(first.error)
    assert "needs" in str(second.error)
    assert "Parts of sharded checkpoints are not sent to the store" in str(second.error)
    each[1].close()
    assert ids(each[0].root) == set()


def test_outcomes_of_long_ago_are_deleted(ranks):
    each = ranks(2)
    for number in range(1, 12):
        for rank in each:
            rank.save(number, "last")
        outcomes(each, number)
    left = {path.name for path in gathers(each[0].root).iterdir()}
    assert f"{RUN}-11" in left
    assert f"{RUN}-1" not in left
    assert len(left) <= 9
