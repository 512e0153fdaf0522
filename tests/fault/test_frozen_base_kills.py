"""A run whose base is not in its checkpoints, killed at any time or without its disk."""

from __future__ import annotations

import shutil
import time

import psutil
import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from tests.fault.nursery import LIMIT_S

pytestmark = pytest.mark.matrix

WIDTH = 256
BASE = 4 * (8 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH)
"""Bytes of the two layers that do not train."""


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_an_adapter_killed_at_random_moments_ends_as_if_it_had_not_been(killing, nursery, tmp_path):
    killing.torture(nursery, tmp_path, seed=31, kills=2, adapted=True, width=WIDTH)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_of_an_adapter_lose_nothing(killing, nursery, tmp_path):
    assert killing.torture(nursery, tmp_path, seed=32, kills=50, adapted=True, width=WIDTH) >= 50


@pytest.mark.timeout(300)
def test_an_adapter_goes_on_without_its_disk(killing, nursery, tmp_path):
    job = {"adapted": True, "width": WIDTH}
    digest, _ = killing.reference(nursery, tmp_path / "reference", **job)
    run = killing.Run(nursery, tmp_path / "run", 1, step_s=0.02, **job)
    pid = nursery.start(**run.command(0))
    until = time.monotonic() + LIMIT_S
    while not run.newest_in_store():
        assert time.monotonic() < until, "nothing was published"
        time.sleep(0.01)
    run.workers.update(run._workers_of(psutil.Process(pid)))
    nursery.close()
    run.workers_end()
    shutil.rmtree(run.root)
    least = run.newest_in_store()
    nursery.start(**run.command(1, fresh=False))
    assert nursery.status() == 0
    end = run.notes()[-1]
    assert (end["event"], end["digest"]) == ("end", digest)
    assert run.begun_at(1) >= least
    for place in (run.root, run.store):
        for one in list_committed(place)[0]:
            facts = one.manifest.origin["base"]
            assert (facts["tensors"], facts["size"]) == (4, BASE)
            assert one.manifest.size < BASE / 3
