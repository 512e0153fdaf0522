"""Runs whose checkpoints are many times the disk, killed, or without their store for a while."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = pytest.mark.matrix

WIDTH = 4000  # 0.5 MB a checkpoint
SAVES = 40
DISKS = {"a checkpoint and a half": 800 * 1024, "half a checkpoint": 256 * 1024}


def stored_steps(run):
    """Of what is whole in the store."""
    found, refused, _ = list_committed(run.store)
    assert not refused
    return {verify(c.path).step for c in found}


@pytest.mark.timeout(300)
def test_checkpoints_of_twenty_times_the_disk_all_reach_the_store(
    killing, nursery, small_disk, tmp_path
):
    size = 900 * 1024
    digest, _ = killing.reference(nursery, tmp_path / "whole", width=WIDTH)
    run = killing.Run(nursery, tmp_path / "run", 0, lambda: small_disk(size), width=WIDTH, keep=-1)
    nursery.start(**run.command(0))
    assert nursery.status() == 0
    assert run.notes()[-1]["digest"] == digest
    run.check_clean()
    found = list_committed(run.store)[0]
    assert len(found) == SAVES
    assert sum(checkpoint.manifest.size for checkpoint in found) > 20 * size
    run.check_whole()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", DISKS.values(), ids=DISKS)
def test_a_run_killed_at_random_on_a_small_disk_ends_as_if_it_had_not_been(
    killing, nursery, small_disk, tmp_path, size
):
    killing.torture(
        nursery, tmp_path, seed=size, kills=4, disk=lambda: small_disk(size), width=WIDTH
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("seed", [21, 22])
def test_kills_on_a_small_disk_lose_nothing(killing, nursery, small_disk, tmp_path, seed, kind):
    size = {"tmpfs": 900 * 1024, "ext4": 1200 * 1024}[kind]
    disk = lambda: small_disk(size, kind)  # noqa: E731
    assert killing.torture(nursery, tmp_path, seed, 25, disk=disk, width=WIDTH) >= 25


@pytest.mark.timeout(300)
def test_the_store_is_away_in_the_middle_third_and_training_goes_on(
    killing, nursery, small_disk, tmp_path
):
    """What there is no room for is refused, and said; what is committed is kept, and sent later."""
    job = {"width": WIDTH, "step_s": 0.1, "on_error": "warn", "keep": -1}
    digest, _ = killing.reference(nursery, tmp_path / "whole", width=WIDTH)
    run = killing.Run(nursery, tmp_path / "run", 0, lambda: small_disk(1800 * 1024), **job)
    handle = os.pidfd_open(nursery.start(**run.command(0)))
    projects = run.store / "training_projects"
    aside = run.folder / "aside"

    def until(step):
        limit = time.monotonic() + 120
        while run.newest_committed(0) < step:
            assert time.monotonic() < limit
            assert not select.select([handle], [], [], 0.05)[0], "it has ended"

    try:
        until(26)
        projects.rename(aside)
        projects.write_text("in the way")
        pause = threading.Event()
        pause.wait(2.7)  # the middle third of 80 steps of 0.1 s
    finally:
        projects.unlink(missing_ok=True)
        aside.rename(projects)
        status = nursery.status()
        os.close(handle)
    assert status == 0
    assert run.notes()[-1]["digest"] == digest
    run.check_clean()
    run.check_whole()
    events = list(read_events(run.root))
    refused = {event["checkpoint"] for event in events if event["event"] == "refused"}
    kept = {note["step"] for note in run.notes() if note["event"] == "committed"}
    assert refused
    assert kept == set(range(2, 81, 2)) - {int(name.rpartition("-")[2]) for name in refused}
    assert stored_steps(run) == kept, "what was committed while it was away was sent later"
    assert 80 in kept
