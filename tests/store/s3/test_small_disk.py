"""A training whose checkpoints are many times its disk, with a real S3 server as the store."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from pathlib import Path

import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.resumable_download import verify_bytes
from tests.fault.nursery import Nursery

WIDTH = 4000  # 0.5 MB a checkpoint
PREFIX = job_prefix("p", "j", 0)


@pytest.fixture(scope="module")
def killing():
    file = Path(__file__).parents[2] / "fault" / "killing.py"
    spec = importlib.util.spec_from_file_location("killing", file)
    sys.modules["killing"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["killing"])
    return sys.modules["killing"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [900 * 1024, 300 * 1024], ids=["evicted", "streamed"])
def test_checkpoints_of_many_times_the_disk_all_reach_the_bucket(
    killing, fork_server, weed, small_disk, tmp_path, size
):
    url = f"s3://bucket/{uuid.uuid4().hex}"
    nursery = Nursery(fork_server, killing.JOB)
    try:
        digest, _ = killing.reference(nursery, tmp_path / "whole", width=WIDTH)
        run = killing.Run(
            nursery, tmp_path / "run", 0, lambda: small_disk(size), width=WIDTH, keep=-1
        )
        nursery.start(**{**run.command(0), "store": url, "options": weed.options})
        status = nursery.status()
    finally:
        nursery.close()
    assert status == 0, Path(f"{run.journal}.err").read_text()
    assert run.notes()[-1]["digest"] == digest
    store = open_store(url, weed.options)
    stored = list_job(store, PREFIX).committed
    manifests = [Manifest.from_bytes(data, "") for data in stored.values()]
    assert {manifest.step for manifest in manifests} == set(range(2, 81, 2))
    assert sum(manifest.size for manifest in manifests) > 20 * size
    for folder in stored:
        verify_bytes(StoreReader(store, PREFIX, folder))
    kinds = {event["event"] for event in read_events(run.root)}
    assert ("evicted" if size > 500_000 else "streamed") in kinds
    assert "refused" not in kinds
    assert len(list_committed(run.root)[0]) <= 2
