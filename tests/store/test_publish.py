"""Publish, unpublish, look and fetch: a death before any call leaves whole checkpoints only."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import threading
import uuid
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.localdir.atomic_directory import delete_directory, sweep, temporaries, trash_dir
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.path_layout import MANIFEST, MANIFESTS_INDEX, MARKER
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job, newest_folder
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.publish import publish
from bt_lightning.store.transfer.unpublish import unpublish
from bt_lightning.worker.publisher_tasks import PublisherTasks

PREFIX = "training_projects/p/jobs/j/rank-0"


class Crash(BaseException):
    """The death of the process: nothing may handle it."""


class CrashingStore:
    """A store whose process dies before call number `last`; deletes count one by one.

    A file that is under way leaves half of itself beside its name, as a copy to a folder does.
    """

    def __init__(self, inner, last):
        self._inner, self._left = inner, last

    @property
    def name(self):
        return self._inner.name

    def _live(self):
        self._left -= 1
        if self._left < 0:
            raise Crash

    def send(self, source, key, reuse=None):
        try:
            self._live()
        except Crash:
            path = PurePosixPath(key)
            self._inner.put(str(path.with_name(f".{path.name}.part")), b"half")
            raise
        self._inner.send(source, key, reuse)

    def put(self, key, data):
        self._live()
        self._inner.put(key, data)

    def put_new(self, key, data):
        self._live()
        self._inner.put_new(key, data)

    def read(self, key):
        self._live()
        return self._inner.read(key)

    def size(self, key):
        self._live()
        return self._inner.size(key)

    def read_into(self, key, offset, *targets, **words):
        self._live()
        self._inner.read_into(key, offset, *targets, **words)

    def list(self, prefix):
        self._live()
        return self._inner.list(prefix)

    def delete(self, keys):
        for key in keys:
            self._live()
            self._inner.delete([key])

    def abandon(self, prefix, keep):
        self._live()
        self._inner.abandon(prefix, keep)


class Before:
    """A store that runs `act` once, right before call number `number` of the ones named."""

    def __init__(self, inner, number, act):
        self._inner, self._left, self._act = inner, number, act
        self.name = inner.name

    def __getattr__(self, method):
        def call(*args):
            if self._left == 0:
                self._act()
            self._left -= 1
            return getattr(self._inner, method)(*args)

        return call

    @property
    def acted(self):
        return self._left < 0


@pytest.fixture(params=["folder", "memory"])
def empty_store(request, tmp_path):
    """A function that gives a new, empty store at each call."""
    if request.param == "folder":
        return lambda: LocalStore(tmp_path / "stores" / uuid.uuid4().hex)
    return lambda: FsspecStore(f"memory://{uuid.uuid4().hex}", {})


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def keys(store):
    """All but the index of manifests, which a publisher puts into a bucket when nothing waits."""
    found = {info.key.removeprefix(f"{PREFIX}/") for info in store.list("")}
    return found - {MANIFESTS_INDEX}


def whole(folder):
    return {f"{folder}/{name}" for name in ("model.safetensors", "sub/state.bin", MANIFEST)}


def assert_only_whole_checkpoints(store, scratch):
    """What a resume would see: every folder of the catalog can be fetched and verifies."""
    listing = list_job(store, PREFIX)
    for folder in listing.committed:
        fetch(store, PREFIX, folder, scratch, scratch / "fetched")
        verify(scratch / "fetched")
        shutil.rmtree(scratch)
    return set(listing.committed)


def next_start(root, store, pinned=()):
    """What the worker of the next start does with everything that it finds."""
    duties = PublisherTasks(root, store, PREFIX, pinned)
    while duties.publish_next():
        pass
    duties.delete_local()
    duties.delete_stored()
    duties.delete_begun()
    duties.leave()


def lives(act):
    try:
        act()
    except Crash:
        return False
    return True


# deaths


def test_a_death_in_a_publish_shows_nothing_or_all_of_it_and_a_rerun_completes(
    empty_store, make, root, tmp_path
):
    """Invariants 1 and 7, in the store."""
    checkpoint = make(root)
    for last in itertools.count():
        store = empty_store()
        done = lives(lambda s=store, n=last: publish(CrashingStore(s, n), PREFIX, checkpoint))
        seen = assert_only_whole_checkpoints(store, tmp_path / "scratch")
        assert seen <= {"checkpoint-1"}
        assert publish(store, PREFIX, checkpoint) == "checkpoint-1"
        assert assert_only_whole_checkpoints(store, tmp_path / "scratch") == {"checkpoint-1"}
        if done:
            assert last > 6
            return


def test_a_death_in_a_publish_leaves_nothing_for_good(empty_store, make, root):
    """Neither markers nor half files may pile up in a bucket that somebody pays for."""
    checkpoint = make(root)
    for last in itertools.count():
        store = empty_store()
        done = lives(lambda s=store, n=last: publish(CrashingStore(s, n), PREFIX, checkpoint))
        next_start(root, store)
        assert keys(store) == whole("checkpoint-1"), f"died before call {last}"
        if done:
            return


def test_a_death_in_a_publish_of_what_is_gone_here_is_swept_by_the_next_look(
    empty_store, make, root, tmp_path
):
    """The disk is lost with the process: a new machine cleans up what the old one had begun."""
    checkpoint = make(root)
    new = tmp_path / "new machine"
    new.mkdir()
    for last in itertools.count():
        store = empty_store()
        done = lives(lambda s=store, n=last: publish(CrashingStore(s, n), PREFIX, checkpoint))
        seen = set(list_job(store, PREFIX).committed)
        next_start(new, store)
        assert keys(store) - {f"checkpoint-1/{MARKER}"} == (
            whole("checkpoint-1") if seen else set()
        )
        if done:
            assert seen
            return


def test_a_death_in_an_unpublish_leaves_all_of_it_or_what_the_next_start_sweeps(
    empty_store, make, root, tmp_path
):
    """Half a checkpoint with a manifest would be offered for a resume, and fail there."""
    old, new = make(root, "checkpoint-1", 1), make(root, "checkpoint-2", 2)
    for last in itertools.count():
        store = empty_store()
        for checkpoint in (old, new):
            publish(store, PREFIX, checkpoint)
        request_local_removal(root, old.manifest.digest)
        dying = CrashingStore(store, last)
        done = lives(lambda d=dying: unpublish(d, PREFIX, "checkpoint-1"))
        seen = assert_only_whole_checkpoints(store, tmp_path / "scratch")
        assert "checkpoint-2" in seen
        next_start(root, store)
        assert keys(store) == whole("checkpoint-2"), f"died before call {last}"
        assert requested_local_removals(root).keys() == frozenset()
        old = make(root, "checkpoint-1", 1)
        if done:
            assert last > 5
            return


def test_a_death_in_a_fetch_leaves_nothing_that_a_sweep_does_not_take(store, make, root, tmp_path):
    checkpoint = make(root)
    publish(store, PREFIX, checkpoint)
    for last in itertools.count():
        target = tmp_path / str(last)
        target.mkdir()
        dying = CrashingStore(store, last)
        final = target / "checkpoint-1"
        done = lives(lambda d=dying, t=target, f=final: fetch(d, PREFIX, "checkpoint-1", t, f))
        assert final.exists() == done
        sweep(target)
        assert not list(temporaries(target).glob("*"))
        if done:
            assert verify(final) == checkpoint.manifest
            return


def test_a_death_in_the_sweep_of_the_store_is_repaired_by_the_next(empty_store, make, root):
    checkpoint = make(root)
    keeper = make(root, "checkpoint-2", 2)
    for last in itertools.count():
        store = empty_store()
        publish(store, PREFIX, keeper)
        lives(lambda s=store, c=checkpoint: publish(CrashingStore(s, 5), PREFIX, c))
        assert keys(store) > whole("checkpoint-2")
        delete_directory(checkpoint.path, root)
        duties = PublisherTasks(root, CrashingStore(store, last), PREFIX, ())
        done = lives(duties.delete_stored)
        lives(duties.leave)
        assert set(list_job(store, PREFIX).committed) == {"checkpoint-2"}
        next_start(root, store)
        assert keys(store) == whole("checkpoint-2")
        checkpoint = make(root)
        if done:
            return


class Counting(LocalStore):
    """Counts what is sent."""

    def __init__(self, root):
        super().__init__(root)
        self.sent = []

    def send(self, source, key, reuse=None):
        self.sent.append(key.rpartition("/")[2])
        super().send(source, key, reuse)


FILES = {f"file-{number}": bytes([number]) * 100 for number in range(4)}


def publication(root, store, last):
    """What a worker does first; it dies before the call `last`, and leaves its lease."""
    duties = PublisherTasks(root, CrashingStore(store, last), PREFIX, ())
    done = lives(duties.publish_next)
    lease = duties._held.lease
    lease._stop()
    store.put(lease._key(lease._number), replace(lease._me, started="long ago").to_bytes())
    return done


def test_a_restart_does_not_send_again_what_had_arrived(make, root, tmp_path):
    make(root, files=FILES)
    for last in itertools.count(8):
        store = Counting(tmp_path / str(last))
        done = publication(root, store, last)
        arrived = len(store.sent)
        next_start(root, store)
        assert sorted(store.sent) == sorted(FILES), f"some twice, after {arrived}"
        assert keys(store) == {f"checkpoint-1/{name}" for name in (*FILES, MANIFEST)}
        if done:
            return


def test_many_small_files_go_side_by_side(make, root, tmp_path):
    """Whoever sends waits for another who sends: one after the other, nobody would come through."""
    pair = threading.Barrier(2, timeout=30)

    class Paired(LocalStore):
        def send(self, source, key, reuse=None):
            pair.wait()
            super().send(source, key, reuse)

    files = {f"file-{number}": bytes([number]) * 100 for number in range(8)}
    local = make(root, files=files)
    store = Paired(tmp_path / "store")
    publish(store, "", local)
    fetch(store, "", "checkpoint-1", tmp_path, tmp_path / "back")
    assert verify(tmp_path / "back").digest == local.manifest.digest


def test_of_many_small_files_one_that_fails_ends_the_publication(make, root, tmp_path):
    class Refusing(LocalStore):
        def send(self, source, key, reuse=None):
            if key.endswith("file-17"):
                msg = "no"
                raise StorePermanentError(msg)
            super().send(source, key, reuse)

    local = make(root, files={f"file-{number}": b"x" * 100 for number in range(40)})
    store = Refusing(tmp_path / "store")
    with pytest.raises(StorePermanentError, match="no"):
        publish(store, "", local)
    assert store.read(f"checkpoint-1/{MANIFEST}") is None


def test_a_full_disk_does_not_keep_its_checkpoint_from_the_store(make, root, store):
    """It may be all that can be saved of it."""
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", root]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        make(root, files=FILES)
        with contextlib.suppress(OSError), (root / "rest").open("wb") as stream:
            while True:
                stream.write(bytes(4096))
                stream.flush()
        next_start(root, store)
        assert keys(store) == {f"checkpoint-1/{name}" for name in (*FILES, MANIFEST)}
    finally:
        subprocess.run(["umount", root], check=True)


def test_what_was_kept_for_a_publication_that_never_comes_is_deleted(make, root, tmp_path):
    """Something newer was saved meanwhile, and retention let go of this one."""
    checkpoint = make(root, files=FILES)
    store = Counting(tmp_path / "store")
    publication(root, store, 13)
    assert store.sent
    duties = PublisherTasks(root, store, PREFIX, ())
    duties.delete_stored()
    assert len(keys(store)) > 1
    make(root, "checkpoint-2", 2)
    request_local_removal(root, checkpoint.manifest.digest)
    assert duties.publish_next().manifest.step == 2
    duties.delete_begun()
    duties.leave()
    assert keys(store) == whole("checkpoint-2")


def test_a_restart_trusts_nothing_that_another_may_have_written_over(make, root, tmp_path):
    """The other machine made the same steps, sent other bytes of the same sizes, and died."""
    make(root, files=FILES)
    store = Counting(tmp_path / "store")
    publication(root, store, 13)
    before = len(store.sent)
    assert before > 1
    other = tmp_path / "other machine"
    make(other, files={name: bytes(100) for name in FILES})
    publication(other, store, 25)
    assert len(store.sent) > before + 1
    store.sent.clear()
    next_start(root, store)
    assert sorted(store.sent) == sorted(FILES)
    fetch(store, PREFIX, "checkpoint-1", tmp_path, tmp_path / "back")
    assert verify(tmp_path / "back").digest == verify(root / "checkpoint-1").digest


# changes on the disk meanwhile


@pytest.mark.parametrize("change", ["replaced", "deleted", "replaced by fewer files"])
def test_a_checkpoint_changed_while_it_is_published_never_mixes(
    store, make, root, tmp_path, change
):
    """The bytes of one and the manifest of another would verify nowhere."""

    def act():
        if change == "deleted":
            delete_directory(root / "checkpoint-1", root)
        else:
            files = {"model.safetensors": b"v" * 300}
            if change == "replaced":
                files["sub/state.bin"] = b"t"
            make(root, step=2, generation=2, files=files)

    for number in itertools.count():
        delete_directory(root / "checkpoint-1", root)
        checkpoint = make(root)
        store = LocalStore(tmp_path / "stores" / str(number))
        watched = Before(store, number, act)
        try:
            publish(watched, PREFIX, checkpoint)
        except CheckpointNotFoundError as error:
            assert str(checkpoint.path) in str(error)  # noqa: PT017 - it may also not be raised
            assert list_job(store, PREFIX).committed == {}
        else:
            committed = list_job(store, PREFIX).committed
            assert committed == {"checkpoint-1": checkpoint.manifest.to_bytes()}
        assert_only_whole_checkpoints(store, tmp_path / "scratch")
        if not watched.acted:
            assert number > 5
            return


def test_what_was_sent_of_a_replaced_checkpoint_is_swept_by_the_next_start(store, make, root):
    checkpoint = make(root)
    with pytest.raises(CheckpointNotFoundError):
        publish(Before(store, 4, lambda: make(root, step=2, generation=2)), PREFIX, checkpoint)
    assert f"checkpoint-1/{MARKER}" in keys(store)
    next_start(root, store)
    assert keys(store) == whole("checkpoint-1@2")


def test_a_local_checkpoint_that_is_damaged_is_not_called_a_passing_failure(store, make, root):
    """As a transient one it would be sent again for ever, unreported, before all older ones."""
    checkpoint = make(root)
    (checkpoint.path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError) as caught:
        publish(store, PREFIX, checkpoint)
    assert not isinstance(caught.value, StoreTransientError)
    assert list_job(store, PREFIX).committed == {}


def test_a_store_that_loses_bytes_is_tried_again(store, make, root):
    """The check of sizes after the upload: some stores say yes and keep half."""

    class Lossy(LocalStore):
        def send(self, source, key, reuse=None):
            with source.hold(0, source.size) as data:
                self.put(key, bytes(data[:-1]))

    with pytest.raises(StoreTransientError, match="after upload"):
        publish(Lossy(store._root), PREFIX, make(root))
    assert list_job(store, PREFIX).committed == {}


# folders


def test_a_folder_of_another_checkpoint_is_left_alone_and_the_next_number_taken(store, make, root):
    """The same id after a lost disk: what the old machine published stays."""
    first = make(root, files={"a": b"1"})
    publish(store, PREFIX, first)
    second = make(root, files={"a": b"2"})
    assert publish(store, PREFIX, second) == "checkpoint-1@2"
    assert publish(store, PREFIX, first) == "checkpoint-1"
    third = make(root, generation=3, files={"a": b"3"})
    assert publish(store, PREFIX, third) == "checkpoint-1@3"
    committed = list_job(store, PREFIX).committed
    assert committed["checkpoint-1"] == first.manifest.to_bytes()
    assert len(committed) == 3


def test_the_newest_generation_is_found_by_number(store, make, root):
    assert newest_folder(store, PREFIX, "checkpoint-1") is None
    for generation in (2, 10, 9):
        publish(store, PREFIX, make(root, generation=generation))
    publish(store, PREFIX, make(root, "checkpoint-10", generation=11))
    assert newest_folder(store, PREFIX, "checkpoint-1") == ("checkpoint-1@10", 10)


@pytest.mark.parametrize("outer", ["committed", "unfinished"])
def test_a_checkpoint_below_the_name_of_another_survives_its_end(store, make, root, outer):
    """Ids may hold slashes. A listing of `a` holds `a/b` as well, which is another checkpoint."""
    inner = make(root, "a/checkpoint-2", 2)
    publish(store, PREFIX, inner)
    outside = make(root.with_name("other"), "a", 1)
    dying = CrashingStore(store, 99 if outer == "committed" else 4)
    assert lives(lambda: publish(dying, PREFIX, outside)) == (outer == "committed")
    if outer == "committed":
        unpublish(store, PREFIX, "a")
    else:
        next_start(root, store)
    assert keys(store) == whole("a/checkpoint-2")


def test_jobs_whose_names_begin_alike_do_not_see_each_other(store, make, root):
    checkpoint = make(root)
    publish(store, "p/rank-1", checkpoint)
    publish(store, "p/rank-10", checkpoint)
    unpublish(store, "p/rank-1", "checkpoint-1")
    assert list_job(store, "p/rank-1").committed == {}
    assert len(list_job(store, "p/rank-10").committed) == 1


def test_a_look_costs_one_listing_and_one_read_for_each_checkpoint(store, make, root):
    for step in (1, 2, 3):
        publish(store, PREFIX, make(root, f"checkpoint-{step}", step))
    calls = []

    class Counting(LocalStore):
        def read(self, key):
            calls.append("read")
            return super().read(key)

        def list(self, prefix):
            calls.append("list")
            return super().list(prefix)

    assert len(list_job(Counting(store._root), PREFIX).committed) == 3
    assert calls == ["list", "read", "read", "read"]


# fetch


def tampered(store, key, data):
    store.put(f"{PREFIX}/checkpoint-1/{key}", data)


@pytest.mark.parametrize("before", ["nothing", "an older generation"])
@pytest.mark.parametrize(
    "damage", ["flipped bit", "truncated", "grown", "empty", "missing", "manifest"]
)
def test_damage_in_the_store_is_refused_and_leaves_what_was_there(
    store, make, root, damage, before
):
    """Invariant 6: what cannot be verified never gets the name of a checkpoint."""
    publish(store, PREFIX, make(root, files={"model.safetensors": b"w" * 300}))
    target = root.with_name("target")
    target.mkdir()
    if before != "nothing":
        make(target, generation=7)
    if damage == "missing":
        store.delete([f"{PREFIX}/checkpoint-1/model.safetensors"])
    elif damage == "manifest":
        data = bytearray(store.read(f"{PREFIX}/checkpoint-1/{MANIFEST}"))
        data[40] ^= 1
        tampered(store, MANIFEST, bytes(data))
    else:
        tampered(
            store,
            "model.safetensors",
            {
                "flipped bit": b"w" * 299 + b"v",
                "truncated": b"w" * 299,
                "grown": b"w" * 301,
                "empty": b"",
            }[damage],
        )
    kind = CheckpointNotFoundError if damage == "missing" else CheckpointCorruptError
    with pytest.raises(kind) as caught:
        fetch(store, PREFIX, "checkpoint-1", target, target / "checkpoint-1")
    assert f"{store.name}/{PREFIX}/checkpoint-1" in str(caught.value)
    if damage != "manifest":
        assert "model.safetensors" in str(caught.value)
    if before == "nothing":
        assert not (target / "checkpoint-1").exists()
    else:
        assert verify(target / "checkpoint-1").generation == 7
    assert not list(temporaries(target).glob("*"))
    assert not list(trash_dir(target).glob("*"))


def test_a_folder_without_a_manifest_is_not_fetched(store, make, root, tmp_path):
    publish(store, PREFIX, make(root))
    store.delete([f"{PREFIX}/checkpoint-1/{MANIFEST}"])
    with pytest.raises(CheckpointNotFoundError, match="checkpoint-1"):
        fetch(store, PREFIX, "checkpoint-1", tmp_path / "t", tmp_path / "t" / "x")
    assert not (tmp_path / "t" / "x").exists()


def test_a_fetch_replaces_what_stands_at_its_target_whole(store, make, root, tmp_path):
    checkpoint = make(root)
    publish(store, PREFIX, checkpoint)
    make(tmp_path / "t", generation=7, files={"only/there": b"x"})
    fetch(store, PREFIX, "checkpoint-1", tmp_path / "t", tmp_path / "t" / "checkpoint-1")
    assert verify(tmp_path / "t" / "checkpoint-1") == checkpoint.manifest
    assert not (tmp_path / "t" / "checkpoint-1" / "only").exists()


def test_a_damaged_manifest_in_the_store_is_neither_deleted_nor_in_the_way(store, make, root):
    publish(store, PREFIX, make(root, files={"a": b"1"}))
    tampered(store, MANIFEST, b"{}")
    second = make(root, files={"a": b"2"})
    next_start(root, store)
    assert store.read(f"{PREFIX}/checkpoint-1/{MANIFEST}") == b"{}"
    assert list_job(store, PREFIX).committed["checkpoint-1@2"] == second.manifest.to_bytes()
