"""What other programs wrote is never what Lightning or a loop resumes from by itself."""

from __future__ import annotations

import shutil

import torch

from bt_lightning import Checkpointer
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.restore.find_checkpoint import Search, find_loaded
from bt_lightning.session.resume_path import resume_path
from tests.foreign import trainer_writes as writes


def committed(scene):
    writes.save(scene.root, 2)
    writes.save_torch(scene.root / "a.ckpt", {"global_step": 90, "pytorch-lightning_version": "2"})
    worker = scene.worker(files=Patterns())
    worker.begin(frozenset())
    scene.watch(worker, lambda: scene.in_store() == {"a", "checkpoint-2"})
    worker.drain(30)
    worker.stop()


def test_they_are_listed_and_not_resumed_from(scene, monkeypatch):
    committed(scene)
    assert {one.manifest.format for one in list_committed(scene.root).found} == {
        *("hf-trainer", "lightning-ckpt")
    }
    assert list_committed(scene.root, foreign=False).found == []
    monkeypatch.setenv("BT_CHECKPOINT_DIR", str(scene.root))
    assert resume_path() is None


def test_those_of_a_load_directory_that_were_downloaded_are_told_by_their_layout(scene, tmp_path):
    committed(scene)
    loaded = tmp_path / "loaded"
    shutil.copytree(
        scene.folder / scene.prefix / "checkpoint-2", loaded / "rank-0" / "checkpoint-2"
    )
    for form, expected in ((None, None), ("hf-trainer", 2)):
        search = Search(form)
        find_loaded(loaded, 0, search, weights_only=None)
        assert search.step == expected


def test_a_loop_begins_at_step_0_beside_them(scene):
    """Even where the store has them: its own is what it resumes from."""
    committed(scene)
    model = torch.nn.Linear(2, 2)
    for expected in (0, 1):
        with Checkpointer(scene.root, scene.folder.as_uri(), project="p", job="j") as ck:
            found = ck.load_latest({"model": model, "step": 0})
            assert found["step"] == expected
            ck.save({"model": model, "step": 1}, 1)
