"""Several fits of one process, with one `dirpath` that is a URL: no fit takes another's names.

Lightning asks a filesystem object of its own which names are taken, and that keeps listings.
"""

from __future__ import annotations

import uuid

import fsspec
import pytest
from fsspec.config import conf

from bt_lightning import BTCheckpointIO

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec:FutureWarning"),
]
STEPS = 2


@pytest.fixture(params=["s3", "gs", "az"])
def url(request, monkeypatch):
    """A new place in a store, which every filesystem object of fsspec finds by itself."""
    scheme = request.param
    if scheme == "s3":
        options, bucket = request.getfixturevalue("s3").options, "bucket"
    elif scheme == "gs":
        server = request.getfixturevalue("gcs")
        options, bucket = server.options, server.bucket()
    else:
        options, bucket = request.getfixturevalue("azurite"), uuid.uuid4().hex
        fsspec.filesystem("az", skip_instance_cache=True, **options).mkdir(bucket)
    monkeypatch.setitem(conf, scheme, options)
    return f"{scheme}://{bucket}/{uuid.uuid4().hex}"


def _fit(folder, url, *plugins, **choice):
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    callback = ModelCheckpoint(url, **{"every_n_train_steps": 1, **choice})
    trainer = Trainer(
        default_root_dir=folder,
        plugins=list(plugins),
        callbacks=[callback],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=STEPS,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel())
    return callback


def _steps(*paths):
    return [BTCheckpointIO().load_checkpoint(path)["global_step"] for path in paths]


@pytest.mark.matrix
def test_each_fold_keeps_its_own_checkpoints(url, tmp_path):
    folds = [_fit(tmp_path, url, BTCheckpointIO(), save_last=True) for _ in range(3)]
    best = [fold.best_model_path.removeprefix(f"{url}/") for fold in folds]
    assert best == [f"epoch=0-step={STEPS}{version}.ckpt" for version in ("", "-v1", "-v2")]
    last = [fold.last_model_path.removeprefix(f"{url}/") for fold in folds]
    assert last == ["last.ckpt", "last-v1.ckpt", "last-v2.ckpt"]
    paths = [p for fold in folds for p in (fold.best_model_path, fold.last_model_path)]
    assert _steps(*paths) == [STEPS] * 6
    files = fsspec.filesystem(url.partition("://")[0])  # such a one as Lightning has
    names = {path.rstrip("/").rpartition("/")[2] for path in files.ls(url, detail=False)}
    assert {name.partition("@")[0] for name in names} == {*best, *last}


def test_a_name_that_was_removed_is_free_for_whoever_listed_it(url, tmp_path):
    first = _fit(tmp_path, url, BTCheckpointIO())
    files = fsspec.filesystem(url.partition("://")[0])
    assert files.exists(first.best_model_path)
    assert files.ls(url)
    BTCheckpointIO().remove_checkpoint(first.best_model_path)
    assert not files.exists(first.best_model_path)
    assert _fit(tmp_path, url, BTCheckpointIO()).best_model_path == first.best_model_path
