"""bt:// names as what a run starts from, is tested with, and is loaded by: real fits on the CPU."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch

from bt_lightning import (
    BTCheckpointIO,
    BTLightning,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InvalidSettingError,
    ReadOnlyError,
)
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to"),
]
EVERY_3 = {"every_n_train_steps": 3, "save_top_k": -1}
OLD = "training_projects/demo/jobs/old/rank-0"


@pytest.fixture
def store(tmp_path: Path, environ: pytest.MonkeyPatch) -> Path:
    """A folder that is the store of every run here, named by the variable."""
    environ.setenv("BT_STORE_URL", str(tmp_path / "store"))
    if "bt" not in fsspec.available_protocols():
        fsspec.register_implementation(
            "bt", "bt_lightning.store.catalog.bt_filesystem.BTFileSystem"
        )
    return tmp_path / "store"


@pytest.fixture
def old(runs: ModuleType, store: Path, tmp_path: Path) -> Path:
    """The job `old` of the project `demo`, which published steps 3 and 6 and then died."""
    bt = {"project": "demo", "job": "old"}
    run = runs.fit(tmp_path / "old", make=partial(runs.Net, 7), save=EVERY_3, bt=bt)
    assert run.stopped
    assert set(list_job(LocalStore(store), OLD).committed) == {"checkpoint-3", "checkpoint-6"}
    return store


def start(runs: ModuleType, root: Path, path: str | None, **bt: Any) -> Any:
    """Fit as the job `new`, which has another disk, from `path`."""
    made = {"project": "demo", "job": "new", **bt}
    return runs.fit(root, save=EVERY_3, ckpt_path=path, bt=made)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("bt://demo", 6),
        ("bt://demo@latest", 6),
        ("bt://demo@old", 6),
        ("bt://demo@old/checkpoint-3", 3),
        ("bt://demo/checkpoint-3/", 3),
    ],
)
def test_a_fit_goes_on_from_a_name_without_a_load_directory(
    runs: ModuleType, old: Path, tmp_path: Path, name: str, step: int
) -> None:
    run = start(runs, tmp_path / "new", name)
    assert run.first_step == step


def test_a_run_that_goes_on_by_a_name_ends_as_the_one_that_goes_on_from_the_disk(
    runs: ModuleType, old: Path, tmp_path: Path
) -> None:
    by_name = start(runs, tmp_path / "new", "bt://demo@old")
    from_disk = runs.fit(tmp_path / "old", save=EVERY_3, bt={"project": "demo", "job": "old"})
    assert from_disk.first_step == 6
    assert by_name.outcome == from_disk.outcome


def test_the_plain_checkpoint_io_takes_a_name_with_no_callback_of_ours(
    runs: ModuleType, old: Path, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    environ.delenv("BT_STORE_URL")
    ours = BTCheckpointIO(store=str(old))
    run = runs.fit(
        tmp_path / "new",
        callbacks=[],
        ckpt_path="bt://demo@old",
        plugins=[ours],
        enable_checkpointing=False,
    )
    assert run.first_step == 6


def test_the_callbacks_own_store_is_asked(
    runs: ModuleType, old: Path, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    environ.delenv("BT_STORE_URL")
    assert start(runs, tmp_path / "new", "bt://demo@old", store=str(old)).first_step == 6


def test_what_a_run_started_from_by_a_name_is_not_deleted_by_it(
    runs: ModuleType, old: Path, tmp_path: Path
) -> None:
    """The same job on a new disk, keeping one checkpoint, named its own newest."""
    keep_one = {"every_n_train_steps": 3, "save_top_k": 1, "monitor": "step", "mode": "max"}
    bt = {"project": "demo", "job": "old", "resume": "never"}
    run = runs.fit(tmp_path / "b", save=keep_one, ckpt_path="bt://demo@old", bt=bt)
    assert run.first_step == 6
    assert "checkpoint-6" in list_job(LocalStore(old), OLD).committed


def test_test_and_validate_and_predict_take_a_name(
    runs: ModuleType, old: Path, tmp_path: Path
) -> None:
    trainer = runs.trainer(tmp_path / "new", BTLightning(dir=tmp_path / "new"))
    trainer.test(
        runs.Net(), runs.validation(), ckpt_path="bt://demo@old/checkpoint-3", verbose=False
    )
    saved = BTCheckpointIO().load_checkpoint("bt://demo@old/checkpoint-3")["state_dict"]
    assert runs.digest(trainer.lightning_module.state_dict()) == runs.digest(saved)
    trainer.validate(runs.Net(), runs.validation(), ckpt_path="bt://demo", verbose=False)
    trainer.predict(runs.Net(), runs.validation(), ckpt_path="bt://demo")


def test_a_module_is_loaded_by_a_name(runs: ModuleType, old: Path) -> None:
    module = runs.Net.load_from_checkpoint("bt://demo@old/checkpoint-3")
    saved = BTCheckpointIO().load_checkpoint("bt://demo@old/checkpoint-3")
    assert runs.digest(module.state_dict()) == runs.digest(saved["state_dict"])
    assert saved["global_step"] == 3
    newest = runs.Net.load_from_checkpoint("bt://demo")
    assert runs.digest(newest.state_dict()) != runs.digest(module.state_dict())


def test_weights_are_read_as_safetensors_from_bytes_and_from_a_copy(
    runs: ModuleType, old: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load, load_file

    saved = BTCheckpointIO().load_checkpoint("bt://demo@old")["state_dict"]
    with fsspec.open("bt://demo@old/checkpoint-6/model.safetensors") as file:
        found = load(file.read())
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    fs = fsspec.filesystem("bt")
    fs.get("bt://demo@old/model.safetensors", str(tmp_path / "copy.safetensors"))
    copied = load_file(tmp_path / "copy.safetensors")
    assert all(torch.equal(copied[name], saved[name]) for name in saved)


def test_a_copied_folder_is_resumed_from(runs: ModuleType, old: Path, tmp_path: Path) -> None:
    fsspec.filesystem("bt").get("bt://demo", str(tmp_path / "copy"), recursive=True)
    assert start(runs, tmp_path / "new", str(tmp_path / "copy")).first_step == 6


def test_a_changed_byte_stops_the_start(runs: ModuleType, old: Path, tmp_path: Path) -> None:
    file = old / OLD / "checkpoint-6" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"optimizer\.safetensors"):
        start(runs, tmp_path / "new", "bt://demo@old")
    with pytest.raises(CheckpointCorruptError, match=r"optimizer\.safetensors"):
        runs.Net.load_from_checkpoint("bt://demo@old")


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("bt://demo@nope", CheckpointNotFoundError, "nothing is committed of the job nope"),
        (
            "bt://demo@old/checkpoint-9",
            CheckpointNotFoundError,
            "it has checkpoint-3, checkpoint-6",
        ),
        (
            "bt://demo@old/checkpoint-6/model.safetensors",
            CheckpointNotFoundError,
            "name the checkpoint",
        ),
        ("bt://demo@a@b", InvalidSettingError, "more than one '@'"),
        ("bt://loops:run1/weights/x", InvalidSettingError, "Baseten Loops"),
    ],
)
def test_a_name_of_nothing_stops_the_start_and_says_what_there_is(
    runs: ModuleType, old: Path, tmp_path: Path, name: str, kind: type, says: str
) -> None:
    with pytest.raises(kind, match=says):
        start(runs, tmp_path / "new", name)


def test_without_a_store_a_name_stops_the_start(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="set BT_STORE_URL"):
        runs.fit(tmp_path / "new", ckpt_path="bt://demo")


def test_nothing_is_saved_or_removed_under_a_name(old: Path) -> None:
    before = list_job(LocalStore(old), OLD).committed
    with pytest.raises(ReadOnlyError):
        BTCheckpointIO().save_checkpoint({"state_dict": {}}, "bt://demo@old/checkpoint-9")
    with pytest.raises(ReadOnlyError):
        BTCheckpointIO().remove_checkpoint("bt://demo@old/checkpoint-6")
    assert list_job(LocalStore(old), OLD).committed == before


def test_all_ranks_start_from_what_the_first_one_finds(
    scripts: Any, old: Path, tmp_path: Path, runs: ModuleType
) -> None:
    """A checkpoint that is published between two ranks' looks must not split them."""
    text = """
    import sys
    from pathlib import Path
    import lightning as L
    import plugin_runs as runs
    from bt_lightning import BTLightning
    from bt_lightning.session.bt_and_evicted_paths import StorePaths

    real = StorePaths.find
    def look(self, path):
        Path(sys.argv[1], f"looked-{trainer.global_rank}").touch()
        return real(self, path)
    StorePaths.find = look

    class Note(L.Callback):
        def on_train_start(self, trainer, module):
            Path(sys.argv[1], f"step-{trainer.global_rank}").write_text(str(trainer.global_step))

    if __name__ == "__main__":
        callbacks = [BTLightning(dir=sys.argv[1] + "/ck", project="demo", job="ddp"), Note()]
        trainer = runs.trainer(
            sys.argv[1], *callbacks, strategy="ddp", devices=2, max_steps=8, max_epochs=None
        )
        trainer.fit(runs.Net(), runs.loader(), ckpt_path="bt://demo@old")
    """
    env = {"BT_STORE_URL": str(old)}
    scripts.run(text, tmp_path, env=env)
    assert {path.name for path in tmp_path.glob("looked-*")} == {"looked-0"}
    assert {path.read_text() for path in tmp_path.glob("step-*")} == {"6"}
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_pandas_reads_a_file_by_a_name(store: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from bt_lightning.localdir.commit import commit
    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.publish import publish

    def describe(entries: Any) -> Manifest:
        return Manifest(
            checkpoint_id="c",
            generation=1,
            step=1,
            epoch=0,
            created_at="2030-01-02T03:04:05Z",
            files=entries,
        )

    manifest = commit(tmp_path / "c", tmp_path, {"m.csv": lambda: [b"a,b\n1,2\n3,4\n"]}, describe)
    publish(LocalStore(store), OLD, LocalCheckpoint(tmp_path / "c", manifest))
    assert pandas.read_csv("bt://demo@old/c/m.csv")["b"].tolist() == [2, 4]
    options = {"store": str(store), "storage_options": {}}
    assert len(pandas.read_csv("bt://demo/m.csv", storage_options=options)) == 2
