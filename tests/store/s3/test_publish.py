"""What a worker does with S3: it goes on after a kill, and sends only what changed."""

from __future__ import annotations

import os
import random
import uuid

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.publish import Base, publish
from bt_lightning.store.transfer.resume_publication import uploads_folder
from bt_lightning.store.transfer.unpublish import unpublish
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import WorkerConfig

MIB = 1024 * 1024
PREFIX = "training_projects/p/jobs/j/rank-0"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def start(weed, root):
    """Start a worker that publishes by an endpoint; it is gone at the end of the test."""
    workers = []
    url = f"s3://bucket/{uuid.uuid4().hex}"

    def start(endpoint):
        options = {
            **weed.options,
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
        }
        config = WorkerConfig(
            root=str(root), store_url=url, storage_options=options, prefix=PREFIX, drain_s=30.0
        )
        worker = Worker(config)
        workers.append(worker)
        worker.begin(frozenset())
        return worker, S3Store(url, options)

    yield start
    for worker in workers:
        worker.kill()


def test_a_killed_worker_goes_on_with_the_parts_that_are_missing(
    start, make, root, proxied, weed, uploads_of, tmp_path
):
    """Of two files: what had arrived is not sent again, neither the whole one nor the parts."""
    data = random.Random(1).randbytes(MIB)
    local = make(root, files={"a": data * 40, "b": data * 200})
    proxy = proxied(weed)
    first, store = start(proxy.endpoint)
    proxy.wait_for(  # two are the smaller file's
        lambda: proxy.count("UploadPart") - proxy.under_way >= 4
    )
    os.kill(first.pid, 9)
    proxy.wait_for(lambda: proxy.under_way == 0)
    (key,) = uploads_of(store)
    assert key.endswith("/b")
    (upload,) = store._api.call("list_multipart_uploads", Prefix=key)["Uploads"]
    parts = store._api.call("list_parts", Key=key, UploadId=upload["UploadId"])["Parts"]
    assert len(parts) >= 1
    proxy.reset()
    second, _ = start(proxy.endpoint)
    second.drain(60)
    second.stop()
    assert proxy.count("UploadPart") == 7 - len(parts)
    assert proxy.count("CreateMultipartUpload") == 0
    assert set(list_job(store, PREFIX).committed) == {"checkpoint-1"}
    fetch(store, PREFIX, "checkpoint-1", tmp_path, tmp_path / "back")
    assert verify(tmp_path / "back").digest == local.manifest.digest
    assert uploads_of(store) == []
    assert list(uploads_folder(root).glob("*.upload.json")) == []


def test_what_a_lost_machine_was_uploading_is_aborted_by_the_next(
    start, make, root, proxied, weed, uploads_of
):
    make(root, files={"a": bytes(MIB) * 200})
    proxy = proxied(weed)
    first, store = start(proxy.endpoint)
    proxy.wait_for(lambda: proxy.count("UploadPart") >= 2)
    os.kill(first.pid, 9)
    proxy.wait_for(lambda: proxy.under_way == 0)
    assert len(uploads_of(store)) == 1
    root.rename(root.with_name("lost"))
    root.mkdir()
    second, _ = start(proxy.endpoint)
    second.drain(60)
    second.stop()
    assert uploads_of(store) == []
    assert list(store.list("")) == []


@pytest.mark.slow
def test_of_a_frozen_backbone_next_to_nothing_is_sent_again(
    make, root, proxied, weed, connect, tmp_path
):
    """99 % of the bytes do not change; each checkpoint still stands by itself."""
    dice = random.Random(1)
    frozen = dice.randbytes(MIB) * 990
    proxy = proxied(weed)
    store = connect(proxy.endpoint, part_bytes=32 * MIB)
    base, sizes = None, []
    for step in (1, 2, 3):
        name = f"checkpoint-{step}"
        local = make(root, name, step, files={"model": frozen + dice.randbytes(10 * MIB)})
        proxy.reset()
        publish(store, PREFIX, local, base=base)
        sizes.append(proxy.received)
        base = Base(f"{PREFIX}/{name}", local.manifest)
    assert sizes[0] >= 1000 * MIB
    assert max(sizes[1:]) <= 0.015 * sizes[0], sizes
    unpublish(store, PREFIX, "checkpoint-1")
    fetch(store, PREFIX, "checkpoint-3", tmp_path, tmp_path / "back")
    assert verify(tmp_path / "back").digest == local.manifest.digest
