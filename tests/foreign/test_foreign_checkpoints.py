"""A worker commits and publishes what other programs wrote: whole, and as long as they keep it."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.list_and_verify_checkpoints import (
    list_committed,
    read_manifest,
    verify,
)
from bt_lightning.localdir.protection import protect_local
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.localdir.sidecars import sidecar_of
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, MANIFEST
from bt_lightning.protection_record import Protection
from bt_lightning.removal_requester import Requester
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from tests.foreign import trainer_writes as writes

KEEPS_ALL = {"save_only_model": False, "save_total_limit": None}


def begun(scene, **given):
    worker = scene.worker(**{"files": Patterns(), **given})
    worker.start()
    worker.begin(frozenset())
    return worker


def listing(scene):
    return list_job(LocalStore(scene.folder), scene.prefix)


def stored(scene, name):
    data = listing(scene).committed[name]
    return Manifest.from_bytes(data, name)


def until_stored(scene, worker, *names):
    scene.watch(worker, lambda: scene.in_store() == set(names))


def test_a_trainers_checkpoint_is_committed_and_published(scene):
    writes.save(scene.root, 2)
    (scene.root / "train.log").write_text("begins\n")
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    worker.drain(30)
    manifest = stored(scene, "checkpoint-2")
    assert (manifest.format, manifest.step, manifest.resumable) == ("hf-trainer", 2, True)
    assert manifest.metrics == {"loss": 0.5, "eval_loss": 1.0}
    (found,) = list_committed(scene.root).found
    assert found.manifest == manifest
    assert verify(found.path) == manifest
    assert found.content == scene.root / "checkpoint-2"
    there = {path.name for path in (scene.root / "checkpoint-2").iterdir()}
    assert there == {entry.path for entry in manifest.files}  # nothing was written into it
    assert set(listing(scene).job_files()) == {"train.log"}
    sent = scene.folder / scene.prefix / "checkpoint-2"
    for entry in manifest.files:
        assert (sent / entry.path).read_bytes() == (found.content / entry.path).read_bytes()


def test_what_is_not_whole_is_neither_committed_nor_sent_and_is_named(scene):
    writes.save(scene.root, 2)
    writes.save(scene.root, 4)
    state = scene.root / "checkpoint-4" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-5])
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    worker.drain(30)
    scene.watch(worker, lambda: scene.failures)
    (said,) = scene.failures
    assert said.startswith("checkpoint-4 is not in the store: it looks like a checkpoint")
    assert "trainer_state.json is not whole" in said
    assert scene.on_disk() == {"checkpoint-2"}
    assert not any("checkpoint-4" in path for path in listing(scene).others)


def test_a_file_that_changes_is_no_longer_committed_until_it_is_the_next_generation(scene):
    writes.save(scene.root, 2)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    first = stored(scene, "checkpoint-2")
    (found,) = list_committed(scene.root).found
    writes.save_torch(scene.root / "checkpoint-2" / "optimizer.pt", {"step": 2}, seed=9)
    with pytest.raises(CheckpointNotFoundError, match=r"optimizer\.pt changed"):
        read_manifest(found.path)
    assert not list_committed(scene.root).found
    os.utime(scene.root / "checkpoint-2" / "trainer_state.json")  # the save is over
    scene.watch(worker, lambda: scene.on_disk() == {"checkpoint-2"})
    scene.watch(worker, lambda: scene.in_store() == {"checkpoint-2@2"})
    second = stored(scene, "checkpoint-2@2")
    assert (second.generation, second.digest != first.digest) == (2, True)


def test_files_that_only_got_other_times_are_the_same_checkpoint(scene):
    writes.save(scene.root, 2)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    for name in ("model.safetensors", "trainer_state.json"):
        os.utime(scene.root / "checkpoint-2" / name)
    assert not scene.on_disk()
    scene.watch(worker, lambda: scene.on_disk() == {"checkpoint-2"})
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-2"}
    assert stored(scene, "checkpoint-2").generation == 1


def test_what_its_program_deleted_goes_from_the_store_too(scene):
    for step in (2, 4):
        writes.save(scene.root, step)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    writes.save(scene.root, 6)  # which deletes 2
    until_stored(scene, worker, "checkpoint-4", "checkpoint-6")
    assert not sidecar_of(scene.root, "checkpoint-2").exists()


def test_a_standby_worker_does_it_while_the_command_runs(scene):
    for step in (2, 4):
        writes.save(scene.root, step)
    worker = begun(scene, standby=True)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    writes.save(scene.root, 6)
    until_stored(scene, worker, "checkpoint-4", "checkpoint-6")


def test_the_only_one_stays_in_the_store_until_a_newer_one_is_there(scene):
    writes.save(scene.root, 2)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    shutil.rmtree(scene.root / "checkpoint-2")
    (scene.root / "more.log").write_text("x")
    scene.watch(worker, lambda: "more.log" in listing(scene).job_files())
    assert scene.in_store() == {"checkpoint-2"}
    writes.save(scene.root, 4)
    until_stored(scene, worker, "checkpoint-4")


def test_what_a_person_deletes_of_a_program_that_keeps_all_stays_in_the_store(scene):
    for step in (2, 4):
        writes.save(scene.root, step, KEEPS_ALL, limit=0)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    shutil.rmtree(scene.root / "checkpoint-2")
    scene.watch(worker, lambda: not sidecar_of(scene.root, "checkpoint-2").exists())
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-2", "checkpoint-4"}


def test_a_file_stands_in_for_none_of_another_name(scene):
    """A person who deletes one model beside another one means neither in the store."""
    for step, name in enumerate(("encoder", "decoder", "epoch=1-loss=0.5", "epoch=2-loss=0.25")):
        writes.save_torch(scene.root / f"{name}.pt", {"step": step}, seed=step)
    worker = begun(scene)
    scene.watch(worker, lambda: len(scene.in_store()) == 4)
    (scene.root / "encoder.pt").unlink()
    (scene.root / "epoch=1-loss=0.5.pt").unlink()
    until_stored(scene, worker, "encoder", "decoder", "epoch=2-loss=0.25")
    worker.drain(30)
    assert "encoder" in scene.in_store()


def test_what_is_protected_stays_in_the_store(scene):
    for step in (2, 4):
        writes.save(scene.root, step)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    protection = Protection(why="served").to_bytes()
    LocalStore(scene.folder).put(f"{scene.prefix}/checkpoint-2/bt_protected.json", protection)
    writes.save(scene.root, 6)
    scene.watch(worker, lambda: "checkpoint-6" in scene.in_store())
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


def test_a_lost_disk_deletes_nothing(scene):
    for step in (2, 4):
        writes.save(scene.root, step)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    worker.drain(30)
    worker.stop()
    shutil.rmtree(scene.root)
    scene.root.mkdir()
    writes.save(scene.root, 6)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4", "checkpoint-6")
    worker.drain(30)
    assert scene.in_store() == scene.names(2, 4, 6)


def test_a_copy_of_the_directory_is_recognised_anew_and_not_sent_again(scene):
    writes.save(scene.root, 2)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    worker.drain(30)
    worker.stop()
    copied = scene.root.with_name("copy")
    shutil.copytree(scene.root, copied)
    assert not list_committed(copied).found
    scene.root = copied
    worker = begun(scene, root=copied)
    scene.watch(worker, lambda: scene.on_disk() == {"checkpoint-2"})
    worker.drain(30)
    assert scene.in_store() == {"checkpoint-2"}


def test_a_deletion_that_was_broken_off_makes_no_smaller_checkpoint(scene):
    for step in (2, 4):
        writes.save(scene.root, step)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    (scene.root / "checkpoint-2" / "config.json").unlink()
    (scene.root / "more.log").write_text("x")
    scene.watch(worker, lambda: "more.log" in listing(scene).job_files())
    worker.drain(30)
    assert scene.on_disk() == {"checkpoint-4"}
    assert scene.in_store() == {"checkpoint-2", "checkpoint-4"}
    assert stored(scene, "checkpoint-2").generation == 1


def test_single_files_and_a_model_beside_them(scene):
    """Each is a folder in the store, with that file; their logs stay job files."""
    for name in ("a", "b"):
        (scene.root / f"{name}.safetensors").write_bytes(writes.safetensors(name))
    writes.save_torch(scene.root / "a.pt", {"global_step": 7, "optimizer": {"x": 1}})
    model = {"architectures": ["X"]}
    (scene.root / "config.json").write_text(json.dumps(model))
    (scene.root / "model.safetensors").write_bytes(writes.safetensors(1))
    (scene.root / "runs").mkdir()
    (scene.root / "runs" / "events.out").write_bytes(b"x")
    writes.save(scene.root / "runs", 2)
    worker = begun(scene)
    names = {"model", "runs/checkpoint-2", "a", "a.safetensors", "b"}
    scene.watch(worker, lambda: names <= scene.in_store())
    worker.drain(30)
    places = {name: [e.path for e in stored(scene, name).files] for name in scene.in_store()}
    assert places["model"] == ["config.json", "model.safetensors"]
    assert (places["a"], places["a.safetensors"]) == (["a.pt"], ["a.safetensors"])
    assert set(listing(scene).job_files()) == {"runs/events.out"}


def test_files_of_one_stem_have_names_of_their_own(scene):
    writes.save_torch(scene.root / "a.ckpt", {"global_step": 7, "optimizer_states": {"x": 1}})
    worker = begun(scene)
    until_stored(scene, worker, "a")
    writes.save_torch(scene.root / "a.pt", {"step": 3})
    until_stored(scene, worker, "a", "a.pt")
    assert [e.path for e in stored(scene, "a.pt").files] == ["a.pt"]
    request_local_removal(scene.root, stored(scene, "a.pt").digest, Requester.PERSON)
    writes.save_torch(scene.root / "b.pt", {"step": 4})
    scene.watch(worker, lambda: "b" in scene.in_store())
    worker.wake()
    until_stored(scene, worker, "a", "b")
    scene.eventually(lambda: not (scene.root / "a.pt").exists())
    assert (scene.root / "a.ckpt").exists()


def test_what_a_person_deletes_takes_no_neighbour(scene):
    for step in (2, 4):
        writes.save(scene.root, step, limit=0)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2", "checkpoint-4")
    (scene.root / "checkpoint-2" / "notes.of.mine").write_text("x")
    request_local_removal(scene.root, stored(scene, "checkpoint-2").digest, Requester.PERSON)
    worker.wake()
    scene.eventually(lambda: len(list((scene.root / "checkpoint-2").iterdir())) == 1)
    assert (scene.root / "checkpoint-2" / "notes.of.mine").exists()
    assert writes.is_whole(scene.root / "checkpoint-4", 4)


def test_excluded_files_are_left_out_and_the_rest_goes_as_files(scene):
    writes.save(scene.root, 2)
    worker = begun(scene, files=Patterns(exclude=("**/optimizer.pt",)))
    scene.watch(worker, lambda: "checkpoint-2/config.json" in listing(scene).job_files())
    worker.drain(30)
    assert "checkpoint-2/optimizer.pt" not in listing(scene).others
    assert "checkpoint-2/model.safetensors" in listing(scene).job_files()
    assert scene.in_store() == set()


def test_a_checkpoint_that_is_protected_on_the_disk_is_not_written_into(scene):
    writes.save(scene.root, 2)
    worker = begun(scene)
    until_stored(scene, worker, "checkpoint-2")
    (found,) = list_committed(scene.root).found
    protect_local(found.path, Protection(why="mine"))
    assert {path.name for path in scene.root.iterdir()} == {DOT_DIR, "checkpoint-2"}
    assert not (found.content / MANIFEST).exists()
    assert len(list(found.content.iterdir())) == 7
