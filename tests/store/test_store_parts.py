"""Parts of sharded saves in a store: whole or not there, whoever dies, and never mixed."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from functools import partial

import pytest

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    StoreTransientError,
)
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import DELETING, MANIFEST, MARKER
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.checkpoint_reader import StoreReader, read_verified
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.store.transfer.publish import Base, publish
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.store.transfer.unpublish import unpublish

PREFIX = "training_projects/p/jobs/j/rank-0"
RUN, LATER = "a" * 32, "b" * 32


class Rank:
    """One rank's part of one save: files on a disk of its own."""

    def __init__(self, place, rank, text=b""):
        self.rank, self.place = rank, place / f"{rank}-{uuid.uuid4().hex[:6]}"
        self.place.mkdir(parents=True)
        files = {
            f"shard-{rank:05}-of-00002.safetensors": b"shard" * 999,
            f"ranks/{rank:05}.json": b"{}",
        }
        if rank == 0:
            files["shards.json"] = b"{}"
        self.entries = []
        for path, data in files.items():
            file = self.place / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data + text)
            self.entries.append(digest_file(file, path))

    def source(self, entry):
        return FileSource(self.place / entry.path, entry)

    def send(self, parts, save, **words):
        claim = parts.find_claim(save)
        parts.send(claim, self.entries, self.source, **words)
        parts.put_record(save, self.rank, str(self.rank).encode())
        return claim


def manifest_of(claim, ranks, step=3):
    facts = ManifestFacts(step=step, epoch=0, created_at="2030-01-02T03:04:05+00:00")
    files = tuple(entry for rank in ranks for entry in rank.entries)
    return facts.manifest(claim.checkpoint_id, claim.number, files)


def check_whole(store):
    """Each manifest of the store names files that are there, byte by byte; return the folders."""
    folders = sorted(list_job(store, PREFIX).committed)
    for folder in folders:
        reader = StoreReader(store, PREFIX, folder)
        for entry in reader.manifest.files:
            reader.check(entry)
            read_verified(reader, entry, 0, [memoryview(bytearray(entry.size))])
    return folders


def keys(store):
    return sorted(info.key.removeprefix(f"{PREFIX}/") for info in store.list(PREFIX))


@pytest.fixture(params=["folder", "memory", "moto"])
def connect(request, tmp_path):
    name = uuid.uuid4().hex
    if request.param == "folder":
        return partial(LocalStore, tmp_path / "store")
    if request.param == "memory":
        return partial(FsspecStore, f"memory://{name}", {})
    s3 = request.getfixturevalue("s3")
    return partial(open_store, f"s3://bucket/{name}", s3.options)


@pytest.fixture
def store(connect):
    return connect()


@pytest.fixture
def parts(store):
    return PartsInStore(store, PREFIX)


@pytest.fixture
def ranks(tmp_path):
    return [Rank(tmp_path, rank) for rank in range(2)]


def test_a_save_is_committed_by_its_manifest_alone_and_leaves_nothing_else(
    connect, store, parts, ranks
):
    save = f"{RUN}-1"
    assert parts.find_claim(save) is None
    claim = parts.claim(save, "a/checkpoint-3", 0)
    assert claim.folder == "a/checkpoint-3"
    for rank in ranks:  # each has its own client
        rank.send(PartsInStore(connect(), PREFIX), save)
    assert parts.look(save).records == {0: b"0", 1: b"1"}
    assert parts.look(save, known=[0]).records == {1: b"1"}
    assert check_whole(store) == []
    assert parts.manifest(claim) is None
    manifest = manifest_of(claim, ranks)
    parts.commit(claim, manifest)
    assert check_whole(store) == ["a/checkpoint-3"]
    assert parts.manifest(claim) == manifest
    paths = sorted(f"a/checkpoint-3/{entry.path}" for rank in ranks for entry in rank.entries)
    assert keys(store) == sorted([*paths, f"a/checkpoint-3/{MANIFEST}"])
    PartsInStore(connect(), PREFIX).commit(claim, manifest)  # another worker was as fast
    assert check_whole(store) == ["a/checkpoint-3"]


def test_a_folder_is_claimed_once_and_a_claim_is_found_again(store, parts):
    first = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    assert PartsInStore(store, PREFIX).claim(f"{RUN}-1", "checkpoint-3", 7) == first
    assert parts.claim(f"{RUN}-2", "checkpoint-3", 0).folder == "checkpoint-3@2"
    assert parts.claim(f"{RUN}-3", "checkpoint-3", 4).folder == "checkpoint-3@5"
    assert parts.claimed_folders() == {
        "checkpoint-3": f"{RUN}-1",
        "checkpoint-3@2": f"{RUN}-2",
        "checkpoint-3@5": f"{RUN}-3",
    }


def test_the_folder_of_a_save_that_was_ended_is_never_given_again(store, parts, ranks):
    """A process of the run before may still be sending to it."""
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    ranks[0].send(parts, f"{RUN}-1")
    parts.end(f"{RUN}-1")
    later = PartsInStore(store, PREFIX).claim(f"{LATER}-1", "checkpoint-3", 0)
    assert later.folder == "checkpoint-3@2"
    assert list(store.list(f"{PREFIX}/{claim.folder}")) == []
    for act in (
        lambda: parts.send(claim, ranks[1].entries, ranks[1].source),
        lambda: parts.commit(claim, manifest_of(claim, ranks)),
    ):
        with pytest.raises(CheckpointNotFoundError, match="checkpoint-3 was given up"):
            act()
    assert list(store.list(f"{PREFIX}/{claim.folder}")) == []


def test_a_users_folder_and_a_checkpoint_are_never_claimed(store, parts, ranks):
    store.put(f"{PREFIX}/checkpoint-3/notes.txt", b"mine")
    store.put(f"{PREFIX}/checkpoint-3@2", b"a file")
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    assert claim.folder == "checkpoint-3@3"
    for rank in ranks:
        rank.send(parts, f"{RUN}-1")
    parts.commit(claim, manifest_of(claim, ranks))
    assert parts.claim(f"{LATER}-1", "checkpoint-3", 0).folder == "checkpoint-3@4"
    unpublish(store, PREFIX, claim.folder)
    assert parts.claim(f"{LATER}-2", "checkpoint-3", 0).folder == "checkpoint-3@3"


def test_nothing_is_committed_of_which_a_file_is_not_there(store, parts, ranks):
    save = f"{RUN}-1"
    claim = parts.claim(save, "checkpoint-3", 0)
    ranks[0].send(parts, save)
    with pytest.raises(CheckpointCorruptError, match=r"shard-00001-of-00002\.safetensors has None"):
        parts.commit(claim, manifest_of(claim, ranks))
    assert check_whole(store) == []
    store.put(f"{PREFIX}/checkpoint-3/{ranks[1].entries[0].path}", b"short")  # another's half
    ranks[1].send(parts, save)
    parts.commit(claim, manifest_of(claim, ranks))
    assert check_whole(store) == ["checkpoint-3"]


def test_a_restarted_worker_sends_only_what_is_missing_and_stops_where_it_is_told(
    store, parts, ranks
):
    save = f"{RUN}-1"
    claim = parts.claim(save, "checkpoint-3", 0)
    asked = []

    def stop():
        asked.append(1)
        if len(asked) > 1:
            msg = "more urgent work"
            raise StoreTransientError(msg)

    with pytest.raises(StoreTransientError, match="more urgent"):
        parts.send(claim, ranks[1].entries, ranks[1].source, check=stop)
    sent = []
    parts.send(claim, ranks[1].entries, ranks[1].source, check=lambda: sent.append(1))
    assert len(sent) == 1
    parts.send(claim, ranks[1].entries, ranks[1].source, check=lambda: sent.append(1))
    assert len(sent) == 1


def test_unchanged_shards_are_copied_inside_the_store(store, parts, ranks):
    first = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    for rank in ranks:
        rank.send(parts, f"{RUN}-1")
    manifest = manifest_of(first, ranks)
    parts.commit(first, manifest)
    second = parts.claim(f"{RUN}-2", "checkpoint-6", 0)
    base = Base(f"{PREFIX}/{first.folder}", manifest)
    for rank in ranks:
        rank.send(parts, f"{RUN}-2", base=base)
    unpublish(store, PREFIX, first.folder)  # each folder stays whole by itself
    parts.commit(second, manifest_of(second, ranks, step=6))
    assert check_whole(store) == ["checkpoint-6"]


def test_a_new_run_commits_what_is_whole_and_ends_the_rest(store, parts, tmp_path):
    """All ranks' workers had sent their parts when the job was killed."""
    whole, torn, own = f"{RUN}-1", f"{RUN}-2", f"{LATER}-1"
    saved = {save: [Rank(tmp_path, rank) for rank in range(2)] for save in (whole, torn, own)}
    for save, step in ((whole, 3), (torn, 6), (own, 9)):
        parts.claim(save, f"checkpoint-{step}", 0)
    for rank in saved[whole]:
        rank.send(parts, whole)
    saved[torn][0].send(parts, torn)
    saved[own][0].send(parts, own)

    def finish(claim, records):
        if len(records) == 2:
            parts.commit(claim, manifest_of(claim, saved[claim.save]))

    PartsInStore(store, PREFIX).sweep(LATER, finish)
    assert check_whole(store) == ["checkpoint-3"]
    assert parts.saves() == [own]
    assert list(store.list(f"{PREFIX}/checkpoint-6")) == []
    saved[own][1].send(parts, own)
    parts.commit(parts.find_claim(own), manifest_of(parts.find_claim(own), saved[own]))
    assert check_whole(store) == ["checkpoint-3", "checkpoint-9"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"id": "../x", "number": 1}', b'{"id": "x", "number": true}']
)
def test_a_damaged_claim_is_an_error_and_leads_nowhere(store, parts, data):
    store.put(f"{PREFIX}/.bt_lightning-parts/{RUN}-1/claim.json", data)
    with pytest.raises(CheckpointCorruptError, match=r"claim.json is damaged"):
        parts.find_claim(f"{RUN}-1")
    assert parts.claimed_folders() == {}
    parts.sweep(LATER, lambda *_: pytest.fail("it has no folder"))
    assert keys(store) == []


def test_a_record_may_be_as_large_as_a_manifest(store, parts):
    """A shard of 100 GB has 25,600 block digests."""
    record = os.urandom(2**20) * 3
    parts.put_record(f"{RUN}-1", 3, record)
    assert parts.look(f"{RUN}-1").records == {3: record}


def test_a_rank_that_sends_for_long_shows_that_it_lives_and_an_end_says_why(store, parts, ranks):
    save = f"{RUN}-1"
    parts.claim(save, "checkpoint-3", 0)
    seen = []
    for count in (1, 2, 3):
        parts.beat(save, 1, count)
        seen.append(parts.look(save).beats)
    assert [len(beats) for beats in seen] == [1, 1, 1]
    assert len(set(seen)) == 3
    ranks[0].send(parts, save)
    parts.end(save, b"rank 1 is late")
    found = parts.look(save)
    assert (found.claim, found.records, found.beats) == (None, {}, frozenset())
    assert found.outcome == b"rank 1 is late"
    parts.sweep(LATER, lambda *_: None)
    assert parts.saves() == []


class Death(BaseException):
    """The death of a process: nothing may handle it."""


class Dying:
    """A store whose process dies before call number `last`, or right after it."""

    def __init__(self, inner, last, *, after=False):
        self._inner, self._left, self._after = inner, last, after

    def __getattr__(self, name):
        method = getattr(self._inner, name)
        if not callable(method):
            return method

        def call(*args, **words):
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Death
            result = method(*args, **words)
            if self._left < 0:
                raise Death
            return list(result) if name == "list" else result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_whoever_dies_before_or_after_any_call_the_next_run_has_whole_checkpoints_only(
    tmp_path, after
):
    """One process does what all ranks do, in an order that they could have."""
    for last in itertools.count():
        inner = FsspecStore(f"memory://{uuid.uuid4().hex}", {})  # where nothing is fsynced
        ranks = [Rank(tmp_path, rank) for rank in range(2)]
        died = False
        try:
            parts = PartsInStore(Dying(inner, last, after=after), PREFIX)
            parts.claim(f"{RUN}-1", "checkpoint-3", 0)
            for rank in ranks:
                claim = rank.send(parts, f"{RUN}-1")
            parts.commit(claim, manifest_of(claim, ranks))
            parts.claim(f"{RUN}-2", "checkpoint-3", 1)
            ranks[0].send(parts, f"{RUN}-2")
            parts.end(f"{RUN}-2")
        except Death:
            died = True
        parts = PartsInStore(inner, PREFIX)
        before = check_whole(inner)
        assert before in ([], ["checkpoint-3"])

        def finish(claim, records, parts=parts, ranks=ranks):
            if len(records) == 2:
                parts.commit(claim, manifest_of(claim, ranks))

        parts.sweep(LATER, finish)
        assert set(check_whole(inner)) >= set(before)
        assert parts.saves() == []
        other = [Rank(tmp_path, rank, b"other") for rank in range(2)]
        new = parts.claim(f"{LATER}-1", "checkpoint-3", 0)
        for rank in other:
            rank.send(parts, f"{LATER}-1")
        parts.commit(new, manifest_of(new, other, step=4))
        assert set(check_whole(inner)) == {*check_whole(inner), new.folder}
        if not died:
            break
    assert last > 20


@pytest.mark.parametrize("call", range(16))
def test_a_save_that_is_ended_while_a_slow_worker_commits_it_is_whole_or_gone(tmp_path, call):
    """A worker of an older run wakes up anywhere in its commit, after a new run swept."""
    inner = LocalStore(tmp_path / "store")
    parts = PartsInStore(inner, PREFIX)
    ranks = [Rank(tmp_path, rank) for rank in range(2)]
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    for rank in ranks:
        rank.send(parts, f"{RUN}-1")

    class Interrupted(Dying):
        def __getattr__(self, name):
            method = getattr(self._inner, name)

            def act(*args, **words):
                if self._left == 0:
                    PartsInStore(inner, PREFIX).end(f"{RUN}-1")
                self._left -= 1
                return method(*args, **words)

            return act if callable(method) else method

    slow = PartsInStore(Interrupted(inner, call), PREFIX)
    with contextlib.suppress(CheckpointCorruptError, CheckpointNotFoundError):
        slow.commit(claim, manifest_of(claim, ranks))
    check_whole(inner)
    left = keys(inner)
    assert (
        any(key.endswith(MANIFEST) for key in left)
        or not [key for key in left if key.startswith("checkpoint-3/") and not key.endswith(MARKER)]
        or f"checkpoint-3/{MARKER}" in left
    )  # or the next start's sweep finds it by its marker


class Calling(Dying):
    """A store that calls `act` with the name of each method, before it and after it."""

    def __init__(self, inner, before=lambda _: None, after=lambda _: None):
        self._inner, self._before, self._after = inner, before, after

    def __getattr__(self, name):
        method = getattr(self._inner, name)
        if not callable(method):
            return method

        def call(*args, **words):
            self._before(name)
            result = method(*args, **words)
            self._after(name)
            return list(result) if name == "list" else result

        return call


def claimed_and_sent(inner, tmp_path):
    parts = PartsInStore(inner, PREFIX)
    ranks = [Rank(tmp_path, rank) for rank in range(2)]
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    for rank in ranks:
        rank.send(parts, f"{RUN}-1")
    return claim, ranks


def only_reservations(inner):
    return all(key.startswith(".bt_lightning-parts/folders/") for key in keys(inner))


@pytest.mark.parametrize("call", range(16))
def test_a_manifest_of_a_killed_committer_does_not_outlive_the_end_of_its_save(tmp_path, call):
    """It saw all files, then the save was ended, up to a call; it is killed behind its put."""
    inner = LocalStore(tmp_path / "store")
    claim, ranks = claimed_and_sent(inner, tmp_path)
    data = manifest_of(claim, ranks).to_bytes()
    calls = []

    def put(name):
        calls.append(name)
        if len(calls) == call + 1:
            inner.put_new(f"{PREFIX}/checkpoint-3/{MANIFEST}", data)

    PartsInStore(Calling(inner, put), PREFIX).end(f"{RUN}-1", b"{}")
    while len(calls) <= call:
        put("")
    PartsInStore(inner, PREFIX).sweep(LATER, lambda *_: None)
    check_whole(inner)
    if f"checkpoint-3/{MANIFEST}" not in keys(inner):
        marked = f"checkpoint-3/{MARKER}" in keys(inner)
        assert marked or only_reservations(inner)


def test_a_commit_whose_answer_was_lost_is_none_if_its_save_was_ended_meanwhile(tmp_path):
    inner = LocalStore(tmp_path / "store")
    claim, ranks = claimed_and_sent(inner, tmp_path)

    def end(name):
        if name == "put_new":
            PartsInStore(inner, PREFIX).end(f"{RUN}-1", b"{}")

    def lose(name):
        if name == "put_new":
            msg = "the answer was lost"
            raise StoreTransientError(msg)

    slow = PartsInStore(Calling(inner, end, lose), PREFIX)
    with pytest.raises(StoreTransientError):
        slow.commit(claim, manifest_of(claim, ranks))
    for _ in range(2):
        with pytest.raises(CheckpointNotFoundError, match="was given up"):
            slow.commit(claim, manifest_of(claim, ranks))
        assert check_whole(inner) == []
    PartsInStore(inner, PREFIX).sweep(LATER, lambda *_: None)
    assert only_reservations(inner)


def test_a_commit_whose_answer_was_lost_counts_if_its_save_goes_on(tmp_path):
    inner = LocalStore(tmp_path / "store")
    claim, ranks = claimed_and_sent(inner, tmp_path)

    def lose(name):
        if name == "put_new":
            msg = "the answer was lost"
            raise StoreTransientError(msg)

    manifest = manifest_of(claim, ranks)
    with pytest.raises(StoreTransientError):
        PartsInStore(Calling(inner, after=lose), PREFIX).commit(claim, manifest)
    for _ in range(2):
        PartsInStore(inner, PREFIX).commit(claim, manifest)
    assert check_whole(inner) == ["checkpoint-3"]
    assert not any(key.startswith(".bt_lightning-parts") for key in keys(inner))


def test_what_lands_behind_the_end_of_its_save_goes(tmp_path):
    inner = LocalStore(tmp_path / "store")
    parts = PartsInStore(inner, PREFIX)
    for number, killed in ((1, False), (2, True)):
        save = f"{RUN}-{number}"
        claim = parts.claim(save, f"checkpoint-{number}", 0)
        rank, ended = Rank(tmp_path, 1), []

        def end(name, save=save, ended=ended):
            if name == "send" and not ended:
                ended.append(1)
                PartsInStore(inner, PREFIX).end(save, b"{}")

        def die(name, killed=killed):
            if killed and name == "send":
                raise Death

        slow = PartsInStore(Calling(inner, end, die), PREFIX)
        with pytest.raises(Death if killed else CheckpointNotFoundError):
            slow.send(claim, rank.entries[:1], rank.source)
        assert bool(list(inner.list(f"{PREFIX}/checkpoint-{number}"))) is killed
    parts.sweep(LATER, lambda *_: None)
    assert only_reservations(inner)


def test_what_lands_behind_a_commit_stays(tmp_path):
    """Rank 0's worker may have sent the file meanwhile."""
    inner = LocalStore(tmp_path / "store")
    parts = PartsInStore(inner, PREFIX)
    ranks = [Rank(tmp_path, rank) for rank in range(2)]
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)

    def commit(name):
        if name == "send" and parts.find_claim(claim.save) is not None:
            for rank in ranks:
                rank.send(parts, claim.save)
            parts.commit(claim, manifest_of(claim, ranks))

    slow = PartsInStore(Calling(inner, commit), PREFIX)
    slow.send(claim, ranks[1].entries[:1], ranks[1].source)
    parts.sweep(LATER, lambda *_: None)
    assert check_whole(inner) == ["checkpoint-3"]


def test_no_other_checkpoint_takes_the_folder_of_a_save_that_was_ended(tmp_path):
    """A process of the run before may still be sending to it."""
    inner = LocalStore(tmp_path / "store")
    parts = PartsInStore(inner, PREFIX)
    claim = parts.claim(f"{RUN}-1", "checkpoint-3", 0)
    parts.end(f"{RUN}-1")
    rank = Rank(tmp_path, 0)
    manifest = manifest_of(claim, [rank])
    (rank.place / MANIFEST).write_bytes(manifest.to_bytes())
    folder = publish(inner, PREFIX, LocalCheckpoint(rank.place, manifest))
    assert folder == "checkpoint-3@2"
    assert publish(inner, PREFIX, LocalCheckpoint(rank.place, manifest)) == folder
    parts.sweep(LATER, lambda *_: None)
    assert check_whole(inner) == [folder]


def test_a_save_that_was_ended_is_never_claimed(store, parts):
    """Rank 0's worker may have been killed when it had said so, and the next one is told again."""
    for number, before in ((1, True), (2, False)):
        save = f"{RUN}-{number}"
        if before:
            parts.claim(save, "checkpoint-3", 0)
        parts.end(save, b"rank 1 is late")
        with pytest.raises(CheckpointNotFoundError, match="checkpoint-3 was given up"):
            PartsInStore(store, PREFIX).claim(save, "checkpoint-3", 0)
        assert parts.look(save).outcome == b"rank 1 is late"


@pytest.mark.parametrize("deleted", ["", "manifest", "files", "all"])
@pytest.mark.parametrize("again", [False, True])
def test_a_slow_commit_brings_nothing_back_that_was_committed_and_deleted_meanwhile(
    tmp_path, deleted, again
):
    """Two workers committed; retention was as fast as one of them, or is not through with it."""
    inner = LocalStore(tmp_path / "store")
    claim, ranks = claimed_and_sent(inner, tmp_path)
    manifest = manifest_of(claim, ranks)
    base = f"{PREFIX}/{claim.folder}"

    def commit_first(name):
        if name != "put_new" or PartsInStore(inner, PREFIX).find_claim(claim.save) is None:
            return
        PartsInStore(inner, PREFIX).commit(claim, manifest)
        if deleted == "all":
            unpublish(inner, PREFIX, claim.folder)
        elif deleted:
            inner.put(f"{base}/{MARKER}", DELETING)
            inner.delete([f"{base}/{MANIFEST}"])
            if deleted == "files":
                inner.delete([f"{base}/{ranks[0].entries[0].path}"])
        if again:
            later = [Rank(tmp_path, rank) for rank in range(2)]
            new = PartsInStore(inner, PREFIX).claim(f"{RUN}-2", "checkpoint-3", 0)
            for rank in later:
                rank.send(PartsInStore(inner, PREFIX), new.save)

    slow = PartsInStore(Calling(inner, commit_first), PREFIX)
    expected = CheckpointNotFoundError if deleted == "all" else StoreTransientError
    with pytest.raises(expected) if deleted else contextlib.nullcontext():
        slow.commit(claim, manifest)
    if deleted in {"manifest", "files"}:
        unpublish(inner, PREFIX, claim.folder)
        with pytest.raises(CheckpointNotFoundError):
            slow.commit(claim, manifest)
    assert check_whole(inner) == ([] if deleted else ["checkpoint-3"])
