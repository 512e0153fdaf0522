"""Zip files of an image get their CRCs from the worker, wherever it commits them."""

from __future__ import annotations

import mmap
import os
import sys
import time
import zipfile
import zlib

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.manifest import ManifestFacts
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.worker.zip_checksums import installed_crc32
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage
from bt_lightning.zip_layout import directory, place_records

SIZE = 32 * 2**20
CONTENT = {b"optimizer/data.pkl": b"x" * 1000, b"optimizer/data/0": os.urandom(9 * 2**20)}


def zipped():
    """A zip file without CRCs."""
    records = place_records([(name, len(data)) for name, data in CONTENT.items()], 64)
    parts = [
        record.local_header + data + record.descriptor()
        for record, data in zip(records, CONTENT.values(), strict=True)
    ]
    return b"".join((*parts, directory([each.entry() for each in records], records[-1].end)))


@pytest.fixture
def save(scene):
    """Save an image of one zip file and one other with a worker; `broken` ruins the zip file."""
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, SIZE)
    memory = mmap.mmap(descriptor, SIZE)
    made = zipped()

    def saved(worker, number, *, broken=False):
        worker.begin(frozenset())
        worker.share(0, descriptor, SIZE)
        memory[: len(made)] = bytes(len(made)) if broken else made
        memory[24 * 2**20 : 24 * 2**20 + 5] = b"hello"
        worker.commit(
            CommitImage(
                number=number,
                arena=0,
                checkpoint_id=f"checkpoint-{number}",
                files=(
                    FileImage(
                        path="optimizer.pt", offset=0, size=len(made), content=1, zipped=True
                    ),
                    FileImage(path="trainer_state.json", offset=24 * 2**20, size=5, content=2),
                ),
                facts=ManifestFacts(
                    step=number, epoch=0, created_at=f"2030-01-01T00:00:0{number}+00:00"
                ),
                began=time.time(),
            )
        )
        return scene.outcome(worker, number)

    yield saved
    memory.close()
    os.close(descriptor)


def whole(folder):
    verify(folder)
    with zipfile.ZipFile(folder / "optimizer.pt") as file:
        assert file.testzip() is None
        assert {name.encode(): file.read(name) for name in file.namelist()} == CONTENT
    assert (folder / "trainer_state.json").read_bytes() == b"hello"


def test_on_the_disk_and_then_in_the_store(scene, save, tmp_path):
    worker = scene.worker()
    outcome = save(worker, 1)
    assert isinstance(outcome, Committed), outcome
    whole(scene.root / "checkpoint-1")
    scene.watch(worker, lambda: scene.published)
    fetch(LocalStore(scene.folder), scene.prefix, "checkpoint-1", tmp_path, tmp_path / "back")
    whole(tmp_path / "back")


def test_straight_in_the_store_if_the_disk_is_too_small(scene, save, tmp_path):
    outcome = save(scene.worker(budget=2**20), 1)
    assert isinstance(outcome, Committed), outcome
    assert outcome.streamed
    fetch(LocalStore(scene.folder), scene.prefix, "checkpoint-1", tmp_path, tmp_path / "back")
    whole(tmp_path / "back")


def test_what_is_no_zip_file_is_refused_and_the_next_is_committed(scene, save):
    worker = scene.worker()
    assert isinstance(save(worker, 1, broken=True), CommitFailed)
    assert not (scene.root / "checkpoint-1").exists()
    assert isinstance(save(worker, 2), Committed)
    whole(scene.root / "checkpoint-2")


def test_without_isal_the_checksums_are_the_same(monkeypatch):
    data = memoryview(os.urandom(1000))
    wanted = zlib.crc32(data, 7)
    assert installed_crc32()(data, 7) == wanted
    monkeypatch.setitem(sys.modules, "isal", None)
    assert installed_crc32() is zlib.crc32
