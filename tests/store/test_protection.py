"""Protection: nothing deletes a protected checkpoint, and what is being deleted cannot get one."""

from __future__ import annotations

import itertools
import threading

import pytest

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.path_layout import DELETING, MANIFEST, MARKER, PROTECTION
from bt_lightning.protection_record import Protection
from bt_lightning.store.catalog.protection import (
    is_protected_stored,
    protect_stored,
    unprotect_stored,
)
from bt_lightning.store.interface import ObjectInfo
from bt_lightning.store.transfer.unpublish import unpublish

BY = Protection(by="ada", why="best so far", at="2026-01-02T03:04:05+00:00")
KEYS = {f"j/a/{name}" for name in (MANIFEST, "model.safetensors")}


class Objects:
    """A store of keys and bytes; `turn` is called before each request."""

    name = "objects"

    def __init__(self, turn=lambda: None):
        self.objects = dict.fromkeys(KEYS, b"x")
        self.turn = turn

    def put(self, key, data):
        self.turn()
        self.objects[key] = data

    def read(self, key):
        self.turn()
        return self.objects.get(key)

    def list(self, prefix):
        self.turn()
        found = [ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items())]
        return [info for info in found if info.key.startswith(f"{prefix}/")]

    def delete(self, keys):
        for key in keys:
            self.turn()
            self.objects.pop(key, None)


class Turns:
    """Lets the threads `0` and `1` make their requests in the order that `order` says."""

    def __init__(self, order):
        self.order = list(order)
        self.changed = threading.Condition()
        self.me = threading.local()

    def __call__(self):
        with self.changed:
            self.changed.wait_for(lambda: not self.order or self.order[0] == self.me.id)
            if self.order:
                self.order.pop(0)
            self.changed.notify_all()

    def run(self, number, action, out):
        self.me.id = number
        try:
            out[number] = action()
        except CheckpointNotFoundError as error:
            out[number] = error
        with self.changed:
            self.order = [who for who in self.order if who != number]
            self.changed.notify_all()


@pytest.mark.parametrize("places", list(itertools.combinations(range(9), 4)), ids=str)
def test_of_one_that_deletes_and_one_that_protects_only_one_gets_its_way(places):
    turns = Turns(0 if i in places else 1 for i in range(9))
    store, out = Objects(turns), {}
    actions = [lambda: protect_stored(store, "j/a", BY), lambda: unpublish(store, "j", "a")]
    threads = [
        threading.Thread(target=turns.run, args=(number, action, out))
        for number, action in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    protected, deleted = out[0] is None, out[1]
    assert not (protected and deleted)
    if protected:
        assert set(store.objects) == {*KEYS, f"j/a/{PROTECTION}"}
    if deleted:
        assert f"j/a/{MANIFEST}" not in store.objects
        assert set(store.objects) <= {f"j/a/{PROTECTION}"}
    if not protected and not deleted:  # both gave way
        assert set(store.objects) == KEYS


def test_a_protected_checkpoint_is_not_deleted_until_it_is_unprotected():
    store = Objects()
    protect_stored(store, "j/a", BY)
    assert is_protected_stored(store, "j/a")
    assert not unpublish(store, "j", "a")
    assert store.objects.keys() == {*KEYS, f"j/a/{PROTECTION}"}
    unprotect_stored(store, "j/a")
    unprotect_stored(store, "j/a")
    assert unpublish(store, "j", "a")
    assert not store.objects


def test_what_is_not_there_or_half_deleted_cannot_be_protected():
    store = Objects()
    with pytest.raises(CheckpointNotFoundError):
        protect_stored(store, "j/b", BY)
    store.objects[f"j/a/{MARKER}"] = DELETING
    with pytest.raises(CheckpointNotFoundError):
        protect_stored(store, "j/a", BY)
    assert not is_protected_stored(store, "j/a")


@pytest.mark.parametrize("rubbish", [b"", b"[]", b'{"by": 3', b"[" * 5000, b"\xff"])
def test_a_protection_that_cannot_be_read_protects_all_the_same(rubbish):
    store = Objects()
    store.objects[f"j/a/{PROTECTION}"] = rubbish
    assert Protection.from_bytes(rubbish) == Protection()
    assert not unpublish(store, "j", "a")


def test_what_a_protection_says_comes_back_and_is_short():
    assert Protection.from_bytes(BY.to_bytes()) == BY
    long = Protection(by="x" * 10_000).to_bytes()
    assert len(long) < 1000
