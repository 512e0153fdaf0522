"""What the workers of many ranks read of a gather: one of them all, the others its outcome."""

from __future__ import annotations

import pytest

from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart
from bt_lightning.worker.gather_parts import DurablePart, GatherThread, _OpenGather
from bt_lightning.worker_messages import WorkerConfig

KEY = SaveKey("ab" * 16, 1)


class Counted(GatherDirectory):
    """Counts how often somebody asks for the records."""

    asked = 0

    def records(self, key):
        self.asked += 1
        return super().records(key)


def part_of(rank, world_size):
    return SavePart(key=KEY, rank=rank, world_size=world_size, fingerprint="cd" * 16)


@pytest.mark.parametrize(
    ("rank", "world_size", "leader_is_dead", "reads"),
    [
        (0, 1000, False, True),
        (5, 1000, False, False),
        (5, 1000, True, True),
        (5, 8, False, True),
    ],
)
def test_of_many_workers_only_rank_0s_reads_records(
    tmp_path, rank, world_size, leader_is_dead, reads
):
    """A thousand would read a million records in each save; rank 0's decides for all."""
    leader, place = GatherDirectory(tmp_path, 0), Counted(tmp_path, rank)
    leader.begin(part_of(0, world_size))
    if rank:
        place.begin(part_of(rank, world_size))
    for each in range(1, 4):
        part = part_of(each, world_size)
        GatherDirectory(tmp_path, each).put(PartRecord(part=part, host=f"node-{each}"))
    if leader_is_dead:
        leader.end(KEY)
    config = WorkerConfig(
        root=str(tmp_path), store_url=None, prefix="", drain_s=1, rank=rank, gather="directory"
    )
    ended = []
    thread = GatherThread(place, config, ended.append, lambda *_: None)
    gather = _OpenGather(DurablePart(number=1, part=part_of(rank, world_size), began=0.0))
    assert not thread._look(gather)
    assert bool(place.asked) == reads
    assert ended == []
    leader.end(KEY)
    place.end(KEY)
