"""A rule beside the usual policy holds for the disk, the store, a standby worker, and supersession.

`test_small_disk.py` has what it means for copies that make room.
"""

from __future__ import annotations

import os
import signal

import pytest

from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.removal_requester import Requester
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.removal_requests import (
    request_stored_removal,
    requested_stored_removals,
)

NONE = frozenset()
KINDS = pytest.mark.parametrize("standby", [False, True], ids=["worker", "standby"])


def both(scene):
    assert scene.on_disk() == scene.in_store()
    return scene.on_disk()


@KINDS
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_rule_keeps_stays_and_is_sent_though_the_training_let_it_go(
    scene, every_ten, standby, when
):
    """Before its publication and after it."""
    worker = scene.worker(standby=standby, policy=every_ten)
    made = scene.make(5, 10, 15, 20, 25)
    if when == "after":
        worker.begin(NONE)
        worker.drain(30)
        assert both(scene) == scene.names(5, 10, 15, 20, 25)
    for manifest in made[:-1]:
        request_local_removal(scene.root, manifest.digest)
    if when == "before":
        worker.begin(NONE)
    worker.drain(30)
    assert both(scene) == scene.names(10, 20, 25)
    worker.drain(30)  # drops the requests that were carried out
    kept = {made[1].digest, made[3].digest}
    assert requested_local_removals(scene.root) == dict.fromkeys(kept, Requester.TRAINING)


@KINDS
def test_what_a_person_asks_to_remove_goes_though_a_rule_keeps_it(scene, every_ten, standby):
    worker = scene.worker(standby=standby, policy=every_ten)
    old, kept, _ = scene.make(10, 20, 25)
    for manifest in (old, kept):
        request_local_removal(scene.root, manifest.digest)
    worker.begin(NONE)
    worker.drain(30)
    assert both(scene) == scene.names(10, 20, 25)
    store = LocalStore(scene.folder)
    request_stored_removal(store, scene.prefix, old.digest)
    worker.drain(30)  # takes the request over
    worker.drain(30)
    assert both(scene) == scene.names(20, 25)
    assert requested_stored_removals(store, scene.prefix) == {}
    assert requested_local_removals(scene.root) == {kept.digest: Requester.TRAINING}


@KINDS
def test_what_a_rule_keeps_is_not_superseded(scene, every_ten, standby):
    scene.make(5, 10, 15, origin={"interim": "interval"})
    scene.make(25)
    worker = scene.worker(standby=standby, policy=every_ten)
    worker.begin(NONE)
    worker.drain(30)
    assert both(scene) == scene.names(10, 25)


def test_a_worker_that_is_killed_and_started_again_keeps_to_the_rule(scene, every_ten):
    worker = scene.worker(policy=every_ten)
    worker.begin(NONE)
    made = scene.make(5, 10, 15)
    worker.drain(30)
    os.kill(worker.pid, signal.SIGKILL)
    for manifest in made:
        request_local_removal(scene.root, manifest.digest)
    scene.make(25)
    worker.drain(30)
    assert both(scene) == scene.names(10, 25)


def test_without_the_rule_the_next_run_removes_what_it_kept(scene, every_ten):
    """Who asked stays on the disk."""
    old, _ = scene.make(10, 25)
    request_local_removal(scene.root, old.digest)
    for policy, left in ((every_ten, scene.names(10, 25)), (None, scene.names(25))):
        worker = scene.worker(**({"policy": policy} if policy else {}))
        worker.begin(NONE)
        worker.drain(30)
        assert both(scene) == left
        worker.drain(30)
        worker.stop()
    assert requested_local_removals(scene.root) == {}
