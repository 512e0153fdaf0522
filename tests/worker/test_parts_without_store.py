"""Parts that are to meet in a store that refuses: the wait ends, and says why."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import pytest

from bt_lightning import file_limits
from bt_lightning.errors import StorePermanentError, StoreTransientError
from bt_lightning.localdir.atomic_directory import gathers
from bt_lightning.localdir.digest import digest_file
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import rank_file
from bt_lightning.sharding.gather_verdict import GatherVerdict
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker.gather_in_store import GatherInStore
from bt_lightning.worker.parts_on_node import PartsOnNode
from tests.worker.conftest import eventually

PART = SavePart(key=SaveKey("0" * 32, 1), rank=1, world_size=2, fingerprint="a" * 32)


class Refusing:
    """A meeting place in a bucket that does not let anybody in."""

    def __init__(self, error):
        self._error = error

    def __getattr__(self, name):
        def refuse(*_, **__):
            raise self._error

        return refuse


@pytest.fixture
def place(tmp_path):
    with contextlib.ExitStack() as closing:

        def make(error):
            place = GatherInStore(tmp_path, 1, lambda: Refusing(error), None)
            closing.callback(place.close)
            folder = place.begin(PART)
            file = folder / rank_file(1)
            file.parent.mkdir(parents=True)
            file.write_bytes(b"mine")
            record = PartRecord(part=PART, host="one", files=(digest_file(file, rank_file(1)),))
            place.put(record)
            return place, file

        yield make


def test_a_store_that_refuses_for_good_ends_the_wait_with_its_reason(place):
    place, _ = place(StorePermanentError("no such bucket"))
    eventually(lambda: place.overdue(PART.key, 1.0, 0.2))
    with pytest.raises(StoreTransientError, match="no such bucket"):
        place.hosts(PART.key)


def test_a_store_that_does_not_answer_ends_no_wait(place):
    place, file = place(StoreTransientError("it does not answer"))

    def said():
        with contextlib.suppress(StoreTransientError):
            place.hosts(PART.key)
            return False
        return True

    eventually(said)
    assert not place.overdue(PART.key, 3600.0, 0.2)
    assert place.outcome(PART.key) is None
    assert file.exists()
    assert list(place.records(PART.key)) == [1]


def test_a_save_that_is_given_up_leaves_nothing_on_the_disk(place):
    place, file = place(StorePermanentError("no such bucket"))
    verdict = place.give_up(PART.key, GatherVerdict(why="rank 0 is late", cause="late"))
    assert verdict.why == "rank 0 is late"
    place.end(PART.key)
    assert not file.exists()
    assert place.outcome(PART.key) == verdict


@pytest.mark.parametrize("full", [False, True])
def test_others_are_told_that_a_part_is_missing_also_if_the_disk_takes_nothing(tmp_path, full):
    store = PartsInStore(LocalStore(tmp_path / "store"), "p")
    root = tmp_path / "node"
    gathers(root).parent.mkdir(parents=True)
    if full:
        gathers(root).write_text("no directory can be made here")
    with contextlib.closing(GatherInStore(root, 1, lambda: store, None)) as place:
        place.begin(PART)
        place.put(PartRecord(part=PART, host="one", missing="no room", cause="full"))
        place.end(PART.key)
        eventually(lambda: 1 in store.look(PART.key.folder).ranks)
    record = PartRecord.from_bytes(store.look(PART.key.folder).records[1], "")
    assert (record.missing, record.cause) == ("no room", "full")


def test_a_part_that_the_disk_does_not_take_is_not_sent_as_if_it_were_durable(tmp_path):
    store = PartsInStore(LocalStore(tmp_path / "store"), "p")
    root = tmp_path / "node"
    gathers(root).parent.mkdir(parents=True)
    gathers(root).write_text("no directory can be made here")
    with contextlib.closing(GatherInStore(root, 1, lambda: store, None)) as place:
        place.begin(PART)
        with pytest.raises(OSError, match="irectory"):
            place.put(PartRecord(part=PART, host="one"))
        assert dict(place.records(PART.key)) == {}


def test_an_outcome_may_be_as_large_as_a_manifest(tmp_path):
    node = PartsOnNode(tmp_path, 1)
    folder, _ = node.begin(PART)
    facts = ManifestFacts(step=3, epoch=0, created_at="2030-01-02T03:04:05+00:00")
    verdict = GatherVerdict(manifest=facts.manifest("checkpoint-3", 1, ()))
    padded = verdict.to_bytes() + b" " * (file_limits.PART.size + 1)
    (folder.parent / "outcome.json").write_bytes(padded)
    assert node.outcome(PART.key) == verdict


class Held(LocalStore):
    """A store whose transfers take until they are let go; lists and small objects take no time."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Event()

    def send(self, source, key, reuse=None):
        assert self.go.wait(60)
        super().send(source, key, reuse)


class Lead:
    """Rank 0's publisher's thread; `go`: it has ended what it was about."""

    def __init__(self, parts):
        self.parts, self.go = parts, threading.Event()

    def claim(self, key, checkpoint_id, after):
        assert self.go.wait(60)
        return self.parts.claim(key.folder, checkpoint_id, after)

    def commit(self, claim, manifest):
        self.parts.commit(claim, manifest)

    def end(self, key, outcome):
        self.parts.end(key.folder, outcome)


def saved(place, number):
    """Make the part of a save durable in its place."""
    part = replace(PART, key=SaveKey(PART.key.run, number), rank=place._rank)
    path = rank_file(part.rank)
    file = place.begin(part) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"of %d" % number)
    facts = ManifestFacts(step=number, epoch=0, created_at="2030-01-02T03:04:05+00:00")
    head = SaveHead(checkpoint_id="last", after=0, facts=facts) if part.rank == 0 else None
    place.put(PartRecord(part=part, host="one", files=(digest_file(file, path),), head=head))
    return part.key


def never_overdue(place, keys, limit_s, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert [place.overdue(key, 3600.0, limit_s) for key in keys] == [False] * len(keys)
        threading.Event().wait(0.02)


def test_a_slow_store_and_a_busy_publisher_make_no_save_late_nor_those_behind_it(tmp_path):
    store = Held(tmp_path / "store")
    parts = PartsInStore(store, "p")
    lead = Lead(parts)
    with contextlib.ExitStack() as closing:
        places = [
            GatherInStore(tmp_path / f"node-{rank}", rank, lambda: parts, None if rank else lead)
            for rank in range(2)
        ]
        for place in places:
            closing.callback(place.close)
        closing.callback(store.go.set)
        closing.callback(lead.go.set)
        keys = [saved(place, number) for number in (1, 2) for place in places][::2]
        never_overdue(places[0], keys, 1.0, 2.0)
        lead.go.set()
        eventually(lambda: all(place._open.saves[keys[0]].sending for place in places))
        for place in places:
            never_overdue(place, keys, 1.0, 2.0)
        store.go.set()
        eventually(lambda: all(len(parts.look(key.folder).ranks) == 2 for key in keys))
        for key in keys:
            own = places[0]._open.saves[key]
            eventually(lambda own=own, key=key: own.sent and len(places[0].records(key)) == 2)
            places[0].commit(key, places[0].records(key))
        assert [parts.look(key.folder).claim for key in keys] == [None, None]


def test_a_save_of_which_nothing_comes_is_late(tmp_path):
    parts = PartsInStore(LocalStore(tmp_path / "store"), "p")
    lead = Lead(parts)
    lead.go.set()
    with contextlib.closing(GatherInStore(tmp_path / "node", 0, lambda: parts, lead)) as place:
        keys = [saved(place, number) for number in (1, 2)]
        eventually(lambda: all(place.overdue(key, 3600.0, 1.0) for key in keys))


def test_a_listing_that_lacks_the_claim_ends_no_save(tmp_path):
    class Late(LocalStore):
        """Its listings know nothing of claims yet."""

        def list(self, prefix):
            return (one for one in super().list(prefix) if not one.key.endswith("claim.json"))

    parts = PartsInStore(Late(tmp_path / "store"), "p")
    lead = Lead(parts)
    lead.go.set()
    with contextlib.closing(GatherInStore(tmp_path / "node", 0, lambda: parts, lead)) as place:
        key = saved(place, 1)
        eventually(lambda: 0 in parts.look(key.folder).ranks)
        looked = place._open.answered_at
        eventually(lambda: place._open.answered_at > looked + 0.2)
        assert place.outcome(key) is None
