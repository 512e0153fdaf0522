"""A list for people: manifests come from the cache, from indexes, or from the store, but agree."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest

from bt_lightning import manifest_summary
from bt_lightning.errors import CheckpointNotFoundError, StorePermanentError
from bt_lightning.late_files import LateFiles, is_distant
from bt_lightning.manifest import Manifest
from bt_lightning.manifest_index import index_bytes
from bt_lightning.path_layout import MANIFEST, job_prefix, jobs_prefix, manifests_index
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog import cache_folder, manifest_cache
from bt_lightning.store.catalog.listed_manifests import list_manifests
from bt_lightning.store.interface import ObjectInfo
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.unpublish import unpublish
from bt_lightning.worker.publish_manifest_index import ManifestIndexPublisher
from bt_lightning.worker.publisher_tasks import PublisherTasks

JOB = job_prefix("demo", "job1", 0)
ALL = jobs_prefix()


class Counting(LocalStore):
    """A folder that counts what is read, and whose versions are MD5 as those of S3."""

    distant = True

    def __init__(self, folder):
        super().__init__(folder)
        self.reads = []

    def read(self, key):
        self.reads.append(key)
        return super().read(key)

    def list(self, prefix):
        for info in super().list(prefix):
            data = (self._root / info.key).read_bytes()
            yield ObjectInfo(info.key, info.size, hashlib.md5(data).hexdigest())


@pytest.fixture
def store(tmp_path, published):
    store = Counting(tmp_path / "store")
    for job in ("job1", "job2"):
        for step in (1, 2, 3):
            published(store, job, f"checkpoint-{step}", step)
    store.reads.clear()
    return store


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def shown(store, cache):
    """What a list shows, with the files of each checkpoint."""
    found = list_manifests(store, ALL, cache)
    return {
        folder: (one.digest, one.size, one.step, tuple(one.files))
        for folder, one in found.manifests.items()
    }


def reads(store):
    found = [key.removeprefix(f"{ALL}/") for key in store.reads]
    store.reads.clear()
    return found


def cache_files(cache):
    return sorted(cache.glob("manifests-*"))


def test_a_second_list_reads_no_manifest_and_parses_none(store, cache, monkeypatch):
    first = shown(store, cache)
    assert len(first) == len(reads(store)) == 6
    parsed = []
    whole = Manifest.from_bytes

    def from_bytes(data, where):
        parsed.append(where)
        return whole(data, where)

    monkeypatch.setattr(Manifest, "from_bytes", from_bytes)
    listed = list_manifests(store, ALL, cache)
    facts = [(one.digest, one.size, one.step, len(one.files)) for one in listed.manifests.values()]
    assert facts == [(*one[:3], len(one[3])) for one in first.values()]
    assert (reads(store), parsed) == ([], [])
    one = next(iter(listed.manifests.values()))
    assert [entry.path for entry in one.files] == ["model.safetensors", "sub/state.bin"]
    assert one.entry("sub/state.bin").size == 1
    assert len(parsed) == 1, "the entries of one checkpoint's files were asked for"
    assert reads(store) == [], "its bytes are in the cache"
    assert shown(store, cache) == first


def test_what_changed_in_the_store_is_read_again_and_only_that(store, cache, published):
    before = shown(store, cache)
    reads(store)
    unpublish(store, JOB, "checkpoint-1")
    unpublish(store, JOB, "checkpoint-2")
    published(store, "job1", "checkpoint-2", 7)
    reads(store)
    after = shown(store, cache)
    assert reads(store) == [f"demo/jobs/job1/rank-0/checkpoint-2/{MANIFEST}"]
    assert after.keys() == before.keys() - {"demo/jobs/job1/rank-0/checkpoint-1"}
    assert after["demo/jobs/job1/rank-0/checkpoint-2"][2] == 7
    assert after == shown(store, None)


def damages(file):
    data = file.read_bytes()
    yield data[: len(data) // 2]
    yield b""
    yield data + b"x"
    for place in range(0, len(data), 97):
        yield data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_torn_cache_is_noticed(store, cache):
    first = shown(store, cache)
    (file,) = cache_files(cache)
    for damaged in damages(file):
        file.write_bytes(damaged)
        reads(store)
        assert shown(store, cache) == first
        assert len(reads(store)) == 6
        assert list(cache.iterdir()) == [file]


def test_the_cache_of_another_prefix_or_of_others_is_not_used(store, cache, tmp_path):
    first = shown(store, cache)
    (file,) = cache_files(cache)
    data = file.read_bytes()
    other = Counting(tmp_path / "store")
    list_manifests(other, JOB, cache)
    (beside,) = set(cache_files(cache)) - {file}
    beside.write_bytes(data)
    reads(other)
    assert len(list_manifests(other, JOB, cache).manifests) == len(reads(other)) == 3
    file.write_bytes(data)
    file.chmod(0o666)
    reads(store)
    assert (shown(store, cache), len(reads(store))) == (first, 6)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(data)
    file.unlink()
    file.symlink_to(elsewhere)
    assert (shown(store, cache), len(reads(store))) == (first, 6)
    assert elsewhere.read_bytes() == data


@pytest.mark.parametrize(
    "forged",
    [
        {"id": "../../outside"},
        {"size": -1},
        {"step": "1"},
        {"digest": "x"},
        {"named": [{"path": "../config.json", "size": 0, "xxh3_128": "0" * 32, "blocks": ""}]},
        {"origin": []},
        "no summary",
        None,
    ],
)
def test_a_forged_cache_with_the_right_digest_says_nothing_that_cannot_be(store, cache, forged):
    first = shown(store, cache)
    (file,) = cache_files(cache)
    prefix_url = f"{store.name}/{ALL}".encode()
    known = manifest_cache._parse(file.read_bytes(), prefix_url)
    for key, one in known.items():
        summary = {**one.summary, **forged} if isinstance(forged, dict) else forged
        known[key] = one._replace(summary=summary)
    file.write_bytes(b"".join(manifest_cache._content(known, prefix_url)))
    reads(store)
    assert shown(store, cache) == first
    assert len(reads(store)) == 6


def test_forged_bytes_are_noticed_by_their_md5(store, cache):
    first = shown(store, cache)
    (file,) = cache_files(cache)
    prefix_url = f"{store.name}/{ALL}".encode()
    known = manifest_cache._parse(file.read_bytes(), prefix_url)
    for key, one in known.items():
        known[key] = one._replace(data=one.data.replace(b"sub/state", b"sub/other"))
    file.write_bytes(b"".join(manifest_cache._content(known, prefix_url)))
    reads(store)
    assert shown(store, cache) == first
    assert len(reads(store)) == 6


def test_manifests_without_room_keep_their_summaries(store, cache, monkeypatch):
    first = shown(store, None)
    monkeypatch.setattr(manifest_cache, "_MOST_BYTES", 3000)
    list_manifests(store, ALL, cache)
    reads(store)
    again = list_manifests(store, ALL, cache)
    assert reads(store) == []
    late = {folder: tuple(one.files) for folder, one in again.manifests.items()}
    assert late == {folder: one[3] for folder, one in first.items()}
    assert 0 < len(reads(store)) < 6, "files that are not in the cache are read when asked for"


def test_a_cache_of_folders_is_bounded(store, cache, monkeypatch):
    monkeypatch.setattr(cache_folder, "_MOST_FILES", 3)
    old = cache / ".manifests-old"
    cache.mkdir()
    old.write_bytes(b"of a process that died")
    os.utime(old, (0, 0))
    for number in range(6):
        cache_file = cache / f"manifests-{number}"
        cache_file.write_bytes(b"x" * 10)
        os.utime(cache_file, (number, number))
    (cache / "jobs").mkdir()
    list_manifests(store, ALL, cache)
    names = {file.name for file in cache_files(cache)}
    assert {"manifests-5", "manifests-4"} < names
    assert len(names) == 3
    assert not old.exists()
    monkeypatch.setattr(cache_folder, "MOST_CACHED_BYTES", 15)
    list_manifests(store, JOB, cache)
    (file,) = cache_files(cache)
    assert len(list_manifests(store, JOB, cache).manifests) == 3
    found = cache_folder.cached_manifests(cache)
    assert (found.number, found.size) == (1, file.stat().st_size)
    assert cache_folder.delete_cached_manifests(cache) == found
    assert cache_folder.cached_manifests(cache).number == 0
    assert (cache / "jobs").is_dir()


_LISTING = """
import sys
from pathlib import Path
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listed_manifests import list_manifests
sys.stdin.read(1)
for _ in range(30):
    for prefix in ("training_projects", "training_projects/demo/jobs/job1"):
        found = list_manifests(LocalStore(Path(sys.argv[1])), prefix, Path(sys.argv[2]))
        assert len(found.manifests) in (3, 6), found
        assert all(len(tuple(one.files)) == 2 for one in found.manifests.values())
"""


def test_several_processes_use_one_cache_at_once(store, cache, tmp_path):
    words = [sys.executable, "-c", _LISTING, str(tmp_path / "store"), str(cache)]
    running = [subprocess.Popen(words, stdin=subprocess.PIPE) for _ in range(4)]
    for process in running:
        process.communicate(b"x")
    assert [process.returncode for process in running] == [0] * 4
    assert {file.name[:10] for file in cache.iterdir()} == {"manifests-"}


# indexes


@pytest.fixture
def index(store):
    """Put the index of `job1`, as its publisher does."""
    listed = list_manifests(store, JOB, None)
    by_folder = {listed.places[folder].folder: one for folder, one in listed.manifests.items()}
    lease = Lease(store, JOB, "publisher")
    lease.take()
    publisher = ManifestIndexPublisher(JOB)
    publisher.send(store, lease, by_folder)
    lease.release()
    store.reads.clear()
    return by_folder


@pytest.mark.usefixtures("index")
def test_an_index_is_read_instead_of_its_manifests(store, cache):
    listed = list_manifests(store, ALL, cache)
    asked = reads(store)
    assert sorted(asked) == [
        "demo/jobs/job1/rank-0/.bt_lightning-manifests",
        *(f"demo/jobs/job2/rank-0/checkpoint-{n}/{MANIFEST}" for n in (1, 2, 3)),
    ]
    of_index = [
        one for folder, one in listed.manifests.items() if "/job1/" in folder and len(one.files)
    ]
    assert len(of_index) == 3
    assert not any(one.files.is_read for one in of_index if isinstance(one.files, LateFiles))
    assert shown(store, cache) == shown(store, None)
    reads(store)
    again = list_manifests(store, ALL, cache)
    assert reads(store) == [], "the cache has what the index said"
    assert {folder: one.digest for folder, one in again.manifests.items()} == {
        folder: one.digest for folder, one in listed.manifests.items()
    }


@pytest.mark.usefixtures("index")
def test_whole_manifests_are_not_taken_from_an_index(store, cache):
    """As the explorer lists one job: no key that a user presses may wait for the store."""
    list_manifests(store, JOB, cache)
    reads(store)
    found = list_manifests(store, JOB, cache, whole=True)
    asked = [f"demo/jobs/job1/rank-0/checkpoint-{n}/{MANIFEST}" for n in (1, 2, 3)]
    assert sorted(reads(store)) == asked
    assert not any(is_distant(one.files) for one in found.manifests.values())
    again = list_manifests(store, JOB, cache, whole=True)
    assert all(len(tuple(one.files)) == 2 for one in again.manifests.values())
    assert reads(store) == []


@pytest.mark.usefixtures("index")
def test_an_index_that_is_old_says_nothing_of_what_was_replaced(store, published):
    unpublish(store, JOB, "checkpoint-2")
    published(store, "job1", "checkpoint-2", 9)
    unpublish(store, JOB, "checkpoint-1")
    published(store, "job1", "checkpoint-4", 4)
    found = list_manifests(store, JOB, None)
    steps = {folder: one.step for folder, one in found.manifests.items()}
    assert steps == {"checkpoint-2": 9, "checkpoint-3": 3, "checkpoint-4": 4}


@pytest.mark.usefixtures("index")
def test_files_of_what_was_replaced_since_the_list_are_not_shown(store, published):
    found = list_manifests(store, JOB, None).manifests
    unpublish(store, JOB, "checkpoint-2")
    published(store, "job1", "checkpoint-2", 9)
    unpublish(store, JOB, "checkpoint-1")
    assert len(tuple(found["checkpoint-3"].files)) == 2
    for gone in ("checkpoint-1", "checkpoint-2"):
        with pytest.raises(CheckpointNotFoundError, match="list again"):
            tuple(found[gone].files)


def test_a_damaged_or_hostile_index_is_as_none(store, index, caplog):
    whole = json.loads(index_bytes(index))
    entry = whole["manifests"]["checkpoint-1"]
    hostile = [
        b"",
        b"{}",
        b"[" * 100_000,
        index_bytes(index)[:-20],
        json.dumps({**whole, "version": 2}).encode(),
        json.dumps({**whole, "manifests": []}).encode(),
        json.dumps({**whole, "manifests": {"checkpoint-1": entry[:2]}}).encode(),
        json.dumps(
            {
                **whole,
                "manifests": {
                    f"checkpoint-{n}": [*one[:2], {**one[2], "id": "../x"}]
                    for n, one in enumerate(whole["manifests"].values(), 1)
                },
            }
        ).encode(),
        b" " * 2_000_000,
    ]
    listed = list_manifests(store, ALL, None).manifests
    wanted = {folder: one.digest for folder, one in listed.items()}
    for data in hostile:
        store.put(manifests_index(JOB), data)
        reads(store)
        found = list_manifests(store, ALL, None)
        assert {folder: one.digest for folder, one in found.manifests.items()} == wanted
        assert len(reads(store)) == 1 + 6
    assert caplog.text


def test_an_index_has_the_newest_that_fit(index, monkeypatch):
    monkeypatch.setattr("bt_lightning.manifest_index._MOST_BYTES", len(index_bytes(index)) - 100)
    kept = json.loads(index_bytes(index))["manifests"]
    assert list(kept) == ["checkpoint-3", "checkpoint-2"]


def test_a_summary_is_of_the_same_manifest(index):
    for manifest in index.values():
        summary = json.loads(json.dumps(manifest_summary.summary_of(manifest)))
        again = manifest_summary.listed_manifest(summary, lambda one=manifest: one, distant=False)
        assert again == manifest
        assert (again.digest, again.size, again.block_bytes) == (
            manifest.digest,
            manifest.size,
            manifest.block_bytes,
        )
        assert again.with_generation(4).digest == manifest.with_generation(4).digest
        assert again.to_bytes() == manifest.to_bytes()


def test_an_index_that_the_store_refuses_is_no_failure_of_the_run(tmp_path, make, caplog):
    class Refusing(Counting):
        def put(self, key, data):
            if key == manifests_index(JOB):
                msg = "this bucket has no room for such keys"
                raise StorePermanentError(msg)
            super().put(key, data)

    store, root = Refusing(tmp_path / "store"), tmp_path / "root"
    root.mkdir()
    make(root, "checkpoint-1", 1)
    tasks = PublisherTasks(root, store, JOB, ())
    while tasks.publish_next() is not None:
        pass
    assert tasks.publish_next() is None
    assert caplog.text.count("was not sent: this bucket has no room") == 1
    tasks.leave()
    assert len(list_manifests(store, JOB, None).manifests) == 1


def test_the_publisher_puts_the_index_when_nothing_waits_and_only_for_what_is_new(tmp_path, make):
    store, root = Counting(tmp_path / "store"), tmp_path / "root"
    root.mkdir()
    for step in (1, 2):
        make(root, f"checkpoint-{step}", step)
    tasks = PublisherTasks(root, store, JOB, ())
    key = manifests_index(JOB)
    assert tasks.publish_next() is not None
    assert tasks.publish_next() is not None
    assert store.read(key) is None, "it holds up no checkpoint"
    assert tasks.publish_next() is None
    first = store.read(key)
    assert json.loads(first)["manifests"].keys() == {"checkpoint-1", "checkpoint-2"}
    store.delete([key])
    assert tasks.publish_next() is None
    assert store.read(key) is None, "nothing new has come"
    make(root, "checkpoint-3", 3)
    while tasks.publish_next() is not None:
        pass
    assert len(json.loads(store.read(key))["manifests"]) == 3
    tasks.leave()
    reads(store)
    assert len(list_manifests(store, JOB, None).manifests) == 3
    assert [one for one in reads(store) if one.endswith(MANIFEST)] == []
