"""Fits that fail before they begin, are tried again, or end oddly."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from bt_lightning import BTLightning, CheckpointCorruptError, DrainTimeoutError, resume_path
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.session.fit_selection import process_fits

if TYPE_CHECKING:
    from pathlib import Path


def trainer(root: Path, *more: Callback, epochs: int = 1, **options: Any) -> L.Trainer:
    """As that of a new process."""
    process_fits.clear()
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=8,
        limit_val_batches=0,
        callbacks=[
            BTLightning(dir=root, **options),
            ModelCheckpoint(every_n_train_steps=3, save_top_k=-1),
            *more,
        ],
    )


class FailOnce(Callback):
    failed = False

    def setup(self, trainer, pl_module, stage):
        if not self.failed:
            self.failed = True
            raise KeyError


class Data(BoringModel):
    broken = True

    def train_dataloader(self):
        if self.broken:
            raise LookupError
        return super().train_dataloader()


class Starts(Callback):
    def on_train_start(self, trainer, pl_module):
        self.step = trainer.global_step


def test_a_fit_that_failed_before_it_restored_anything_resumes_at_the_next_try(tmp_path):
    trainer(tmp_path).fit(BoringModel())
    starts = Starts()
    second = trainer(tmp_path, FailOnce(), starts, epochs=2)
    with pytest.raises(KeyError):
        second.fit(BoringModel())
    second.fit(BoringModel())
    assert starts.step == 8


def test_a_fit_whose_data_failed_can_be_tried_again(tmp_path):
    starts, module, first = Starts(), Data(), Data()
    first.broken = False
    trainer(tmp_path).fit(first)
    second = trainer(tmp_path, starts, epochs=2)
    with pytest.raises(LookupError):
        second.fit(module)
    module.broken = False
    second.fit(module)
    assert starts.step == 8


def test_load_from_checkpoint_reads_a_directory_in_a_process_that_never_trained(scripts, tmp_path):
    trainer(tmp_path).fit(BoringModel())
    scripts.run(
        "from bt_lightning import BTLightning\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        f"BoringModel.load_from_checkpoint({str(tmp_path / 'checkpoint-3')!r})\n"
    )


def test_a_run_whose_every_checkpoint_is_damaged_does_not_silently_begin_again(tmp_path):
    trainer(tmp_path).fit(BoringModel())
    for found in list_committed(tmp_path)[0]:
        (found.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointCorruptError, match="resume='never'"):
        trainer(tmp_path, epochs=2).fit(BoringModel())
    fresh = trainer(tmp_path, epochs=2, resume="never")
    fresh.fit(BoringModel())
    assert fresh.global_step == 16


@pytest.mark.parametrize("where", ["disk", "store"])
def test_manifests_that_cannot_be_read_do_not_make_a_run_begin_again(tmp_path, monkeypatch, where):
    """Not afresh, nor from what a platform laid beside it."""
    other, root, store = tmp_path / "other", tmp_path / "root", tmp_path / "store"
    trainer(other).fit(BoringModel())
    trainer(root, store=f"file://{store}", job="j").fit(BoringModel())
    if where == "store":
        shutil.rmtree(root)
    for manifest in (root if where == "disk" else store).rglob("bt_manifest.json"):
        manifest.write_text("{")
    given = {} if where == "disk" else {"store": f"file://{store}", "job": "j"}
    with pytest.raises(CheckpointCorruptError, match=r"(?s)none of this job's.*refused"):
        trainer(root, epochs=2, load_dir=other, **given).fit(BoringModel())
    if where == "disk":
        monkeypatch.setenv("BT_CHECKPOINT_DIR", str(root))
        monkeypatch.setenv("BT_LOAD_CHECKPOINT_DIR", str(other))
        with pytest.raises(CheckpointCorruptError, match="none of this job's"):
            resume_path()


@pytest.mark.filterwarnings("default")  # what pytest.warns does not match it raises again
def test_a_failing_store_does_not_hide_why_the_training_failed(tmp_path):
    """`save_on_exception` saves after the session ended, and is published by itself."""
    pytest.importorskip("lightning", minversion="2.6")

    class Divide(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                (tmp_path / "store").rename(tmp_path / "gone")
                (tmp_path / "store").write_text("in the way")
                raise ZeroDivisionError

    options = {"store": f"file://{tmp_path}/store", "on_error": "raise"}
    last = ModelCheckpoint(every_n_epochs=1, save_on_exception=True, filename="last-words")
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="store"):
        trainer(tmp_path / "ck", Divide(), last, **options).fit(BoringModel())
    assert (tmp_path / "ck" / "last-words").is_dir()


def test_no_secret_of_a_url_reaches_a_message(tmp_path):
    from bt_lightning import CheckpointNotFoundError, InvalidSettingError

    with pytest.raises(InvalidSettingError) as caught:
        trainer("s3://name:hunter2@bucket").fit(BoringModel())
    assert "hunter2" not in str(caught.value)
    store = "memory://name:hunter2@bucket/x"
    with pytest.raises(CheckpointNotFoundError) as caught:
        trainer(tmp_path, store=store, resume="require").fit(BoringModel())
    assert "hunter2" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_the_pin_of_the_first_fit_holds_in_the_second(tmp_path):
    trainer(tmp_path).fit(BoringModel())
    bt = BTLightning(dir=tmp_path)
    newest = ModelCheckpoint(every_n_train_steps=2, save_top_k=1)
    again = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=8,
        limit_val_batches=0,
        callbacks=[bt, newest],
    )
    again.fit(BoringModel())
    again.fit_loop.max_epochs = 3
    again.fit(BoringModel())
    assert (tmp_path / "checkpoint-6").is_dir(), "what the run resumed from was deleted by it"


@pytest.mark.filterwarnings("default")
def test_a_store_that_is_down_at_the_end_is_named_and_the_exception_is_ours(tmp_path):
    class Block(Callback):
        def on_train_start(self, trainer, pl_module):
            (tmp_path / "store").rename(tmp_path / "gone")
            (tmp_path / "store").write_text("in the way")

    options = {"store": f"file://{tmp_path}/store", "on_error": "warn"}
    (tmp_path / "store").mkdir()
    with pytest.warns(UserWarning, match="Waiting on disk: final-8, checkpoint-6"):
        trainer(tmp_path / "ck", Block(), **options).fit(BoringModel())
    assert issubclass(DrainTimeoutError, TimeoutError)
