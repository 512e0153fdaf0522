"""What the workers of many ranks ask of a store while the parts of a save meet there."""

from __future__ import annotations

import time

import pytest

from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker.look_for_parts import PartsWatch
from bt_lightning.worker.open_parts import OpenPart, OpenParts
from bt_lightning.worker.parts_on_node import PartsOnNode

WORLD = 1000
THERE = 40
KEY = SaveKey("ab" * 16, 1)


def part_of(rank):
    return SavePart(key=KEY, rank=rank, world_size=WORLD, fingerprint="cd" * 16)


@pytest.fixture
def parts(tmp_path):
    """A store with the parts of a few of a thousand ranks."""
    found = PartsInStore(open_store(str(tmp_path)), "training_projects/p/jobs/j/rank-0")
    for rank in range(THERE):
        record = PartRecord(part=part_of(rank), host=f"node-{rank}", missing="its disk is full")
        found.put_record(KEY.folder, rank, record.to_bytes())
    return found


def watch_of(known, parts, node, *, leads):
    return PartsWatch(known, PartsOnNode(node / "node", 5), lambda: parts, leads=leads)


@pytest.mark.parametrize("leads", [True, False])
def test_only_rank_0s_worker_reads_all_records_while_others_may_come(tmp_path, parts, leads):
    """A thousand workers would read a million records in each save."""
    known, save = OpenParts(), OpenPart(part_of(5))
    known.saves[KEY] = save
    watch = watch_of(known, parts, tmp_path, leads=leads)
    watch._look(save)
    assert save.ranks == frozenset(range(THERE))
    assert len(save.records) == (THERE if leads else 0)
    alive_at = save.alive_at
    watch._look(save)
    assert save.alive_at == alive_at, "no part came"
    save.alive_at = known.answers_since = time.monotonic() - 60
    watch._look(save)
    assert len(save.records) == THERE, "this worker may have to say who is missing"


def test_the_more_workers_list_one_folder_the_less_often(tmp_path, parts):
    known, save = OpenParts(), OpenPart(part_of(5))
    assert watch_of(known, parts, tmp_path, leads=True)._most_poll_s([save]) == 2.0
    assert watch_of(known, parts, tmp_path, leads=False)._most_poll_s([save]) == 4.0
    few = OpenPart(SavePart(key=KEY, rank=1, world_size=8, fingerprint="cd" * 16))
    assert watch_of(known, parts, tmp_path, leads=False)._most_poll_s([few]) == 2.0
