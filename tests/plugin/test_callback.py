"""`BTLightning` beside everything else that a Trainer does with checkpoints."""

from __future__ import annotations

import json
import logging
import shutil
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import BTCheckpointIO, BTLightning, BTModelCheckpoint, InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Names = Callable[[Path | str], set[str]]

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
EVERY_3 = {"every_n_train_steps": 3, "save_top_k": -1}


def model_checkpoint(**options: Any) -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(**options)


def in_store(store: Path) -> Path:
    """The folder of the only job in `store`."""
    (job,) = store.glob("training_projects/*/jobs/*/rank-0")
    return job


@pytest.fixture
def scored(runs: ModuleType) -> Any:
    """Makes a module that logs `score`, one value an epoch."""

    def make(*scores: float) -> Any:
        class Scored(runs.Net):
            def validation_step(self, batch: Any, index: int) -> None:
                self.log("score", scores[self.trainer.current_epoch])

        return Scored

    return make


# where checkpoints go, and what they are called


def test_no_argument_is_needed_where_the_environment_names_the_directory(
    runs: ModuleType, names: Names, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "given"))
    environ.setenv("BT_STORE_URL", (tmp_path / "store").as_uri())
    environ.setenv("BT_TRAINING_PROJECT_NAME", "team/demo")
    environ.setenv("BT_TRAINING_JOB_ID", "job7")
    environ.setenv("BT_NODE_RANK", "0")
    run = runs.fit(tmp_path, callbacks=[BTLightning()])
    assert names(tmp_path / "given") == {"checkpoint-24"}
    assert run.trainer.checkpoint_callback.best_model_path == str(
        tmp_path / "given" / "checkpoint-24"
    )
    job = tmp_path / "store" / "training_projects" / "team-demo" / "jobs" / "job7" / "rank-0"
    assert names(job) == {"checkpoint-24"}


def test_without_a_directory_checkpoints_go_into_the_default_root_dir(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    runs.fit(tmp_path, callbacks=[BTLightning()])
    assert names(tmp_path / "bt_checkpoints") == {"checkpoint-24"}


def test_a_directory_elsewhere_and_its_stock_files_are_left_to_lightning(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    import torch

    elsewhere = model_checkpoint(dirpath=tmp_path / "elsewhere", filename="mine")
    runs.fit(tmp_path / "root", callbacks=[BTLightning(dir=tmp_path / "root"), elsewhere])
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine.ckpt"]
    assert names(tmp_path / "root") == {"final-24"}
    stock = torch.load(tmp_path / "elsewhere" / "mine.ckpt", weights_only=True)
    assert stock["global_step"] == 24


def test_a_filename_of_the_users_names_directories_of_ours(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    runs.fit(tmp_path, save={"filename": "{epoch}/at-{step}", "save_top_k": -1})
    assert names(tmp_path) == {
        f"epoch={epoch}/at-step={step}" for epoch, step in ((0, 8), (1, 16), (2, 24))
    }


def test_monitor_and_save_top_k_decide_what_stays(
    runs: ModuleType, scored: Any, names: Names, tmp_path: Path
) -> None:
    save = {"monitor": "score", "mode": "max", "save_top_k": 2}
    run = runs.fit(tmp_path, make=scored(3.0, 1.0, 2.0), save=save)
    assert names(tmp_path) == {"checkpoint-8", "checkpoint-24"}
    assert run.trainer.checkpoint_callback.best_model_path == str(tmp_path / "checkpoint-8")
    from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest

    assert read_manifest(tmp_path / "checkpoint-8").metrics["score"] == 3.0


def test_save_last_true_keeps_a_whole_second_checkpoint(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    runs.fit(tmp_path, save={"save_last": True})
    assert names(tmp_path) == {"checkpoint-24", "last"}
    assert BTCheckpointIO().load_checkpoint(tmp_path / "last")["global_step"] == 24


def test_save_last_link_points_at_the_newest_directory(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    runs.fit(tmp_path, save={"save_last": "link"})
    assert (tmp_path / "last").is_symlink()
    assert (tmp_path / "last").resolve() == tmp_path / "checkpoint-24"
    assert names(tmp_path) == {"checkpoint-24"}, "a link counts once"


@pytest.mark.parametrize("save_last", [True, "link"])
def test_the_word_last_resumes_from_the_last_checkpoint(
    runs: ModuleType, tmp_path: Path, save_last: Any
) -> None:
    """Lightning looks for it before any callback knows the directory, and says so; we then do."""
    save = {"every_n_train_steps": 8, "save_last": save_last}
    runs.fit(tmp_path, make=lambda: runs.Net(17), save=save)
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        run = runs.fit(tmp_path, save=save, ckpt_path="last")
    assert run.first_step == 16


def test_several_model_checkpoints_keep_their_own(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    """Both save at step 24: one must not take, or later remove, what the other keeps."""
    steps = model_checkpoint(every_n_train_steps=4)
    epochs = model_checkpoint(every_n_epochs=1, save_top_k=-1)
    runs.fit(tmp_path, callbacks=[BTLightning(dir=tmp_path), steps, epochs])
    kept = {Path(steps.best_model_path).name, *(Path(p).name for p in epochs.best_k_models)}
    kept.add(Path(epochs.best_model_path).name)
    assert kept <= names(tmp_path)
    steps_of = {
        name: BTCheckpointIO().load_checkpoint(tmp_path / name)["global_step"]
        for name in names(tmp_path)
    }
    assert {8, 16, 24} == set(steps_of.values())
    assert steps_of[Path(steps.best_model_path).name] == 24


def test_a_time_interval_saves_between_steps(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    save = {"train_time_interval": timedelta(microseconds=1), "save_top_k": -1}
    runs.fit(tmp_path, save=save, max_epochs=1)
    assert names(tmp_path) == {f"checkpoint-{step}" for step in range(1, 9)}


def test_every_second_epoch_is_every_second_epoch(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    runs.fit(tmp_path, save={"every_n_epochs": 2, "save_top_k": -1}, max_epochs=5)
    assert names(tmp_path) == {"checkpoint-16", "checkpoint-32", "final-40"}


@pytest.mark.skipif(OLD, reason="ModelCheckpoint has save_on_exception since Lightning 2.6")
def test_what_is_saved_on_an_exception_is_committed_and_goes_to_the_store(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    """Lightning calls `on_exception` of a ModelCheckpoint after that of BTLightning."""
    root, store = tmp_path / "root", tmp_path / "store"
    save = {"save_on_exception": True, "every_n_train_steps": 8}
    bt = {"store": str(store)}
    assert runs.fit(root, make=lambda: runs.Net(5), save=save, bt=bt).stopped
    assert names(root) == {"checkpoint-5"}
    assert names(in_store(store)) == {"checkpoint-5"}


def test_a_logger_may_open_the_checkpoint_as_soon_as_it_is_told(
    runs: ModuleType, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers.logger import Logger

    class Opening(Logger):
        name, version = "opening", 0
        steps: list[int] = []  # noqa: RUF012 - one instance

        def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            path = checkpoint_callback.best_model_path
            self.steps.append(BTCheckpointIO().load_checkpoint(path)["global_step"])

    logger = Opening()
    runs.fit(tmp_path, save={"save_top_k": 1}, logger=logger)
    assert logger.steps == [8, 16, 24]


# one trainer, other entry points


def test_a_fast_dev_run_writes_nothing(runs: ModuleType, tmp_path: Path) -> None:
    runs.fit(tmp_path / "root", fast_dev_run=True)
    assert not (tmp_path / "root" / ".bt_lightning").exists()


def test_the_best_checkpoint_is_tested_validated_predicted_and_loaded(
    runs: ModuleType, tmp_path: Path
) -> None:
    run = runs.fit(tmp_path, save={"save_top_k": 1})
    best = run.trainer.checkpoint_callback.best_model_path
    data = runs.validation()
    for act in (run.trainer.test, run.trainer.validate, run.trainer.predict):
        fresh = runs.Net()
        act(fresh, data, ckpt_path="best" if act != run.trainer.predict else best)
        assert runs.digest(fresh.state_dict()) == run.outcome["weights"], act.__name__
    loaded = runs.Net.load_from_checkpoint(best)
    assert runs.digest(loaded.state_dict()) == run.outcome["weights"]


def test_a_second_fit_of_one_trainer_goes_on_where_it_stands(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = {"save": {"save_top_k": -1}, "bt": {"store": str(store)}}
    run = runs.fit(tmp_path / "root", max_epochs=2, **options)
    run.trainer.fit_loop.max_epochs = 4
    run.trainer.fit(run.module, runs.loader(), runs.validation())
    assert run.module.steps == list(range(32)), "the second fit began again"
    assert names(tmp_path / "root") == {f"checkpoint-{step}" for step in (8, 16, 24, 32)}
    assert names(in_store(store)) == names(tmp_path / "root")


def test_a_validation_before_the_fit_does_not_change_where_checkpoints_go(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    """Lightning sets its ModelCheckpoints up for a validation as well."""
    trainer = runs.trainer(tmp_path, BTLightning(dir=tmp_path / "root"), max_epochs=1)
    module = runs.Net()
    trainer.validate(module, runs.validation(), verbose=False)
    trainer.fit(module, runs.loader(), runs.validation())
    assert names(tmp_path / "root") == {"checkpoint-8"}
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_one_callback_serves_two_trainers_one_after_the_other(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    callback = BTLightning()
    for name in ("one", "two"):
        run = runs.fit(tmp_path / name, callbacks=[callback])
        assert run.first_step == 0
        assert names(tmp_path / name / "bt_checkpoints") == {"checkpoint-24"}


def test_the_tuner_passes_through(
    runs: ModuleType, names: Names, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    """Its trials are fits, and its temporary checkpoints are Lightning's own."""
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader

    class Data(LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(runs.Numbers(), batch_size=self.batch_size)

        def val_dataloader(self) -> Any:
            return runs.validation()

    environ.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread of its own
    root = tmp_path / "root"
    trainer = runs.trainer(tmp_path, BTLightning(dir=root), max_epochs=1)
    module, data = runs.Net(), Data()
    tuner = Tuner(trainer)
    tuner.lr_find(module, data, num_training=16, max_lr=0.1)
    tuner.scale_batch_size(module, data, max_trials=2, steps_per_trial=1)
    assert not root.exists()
    trainer.fit(module, data)
    assert len(names(root)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_an_explicit_path_wins_over_what_resume_would_choose(
    runs: ModuleType, tmp_path: Path
) -> None:
    runs.fit(tmp_path, make=lambda: runs.Net(14), save=EVERY_3)
    run = runs.fit(tmp_path, save=EVERY_3, ckpt_path=str(tmp_path / "checkpoint-6"))
    assert run.first_step == 6


# retention


def test_what_a_run_resumed_from_goes_in_the_run_after(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    save = {"every_n_train_steps": 4, "save_top_k": 1}
    store = tmp_path / "store"
    options = {"save": save, "bt": {"store": str(store)}}
    root = tmp_path / "root"
    runs.fit(root, make=lambda: runs.Net(9), **options)
    assert names(root) == {"checkpoint-8"}
    runs.fit(root, make=lambda: runs.Net(17), **options)
    assert names(root) == {"checkpoint-8", "checkpoint-16"}, "the start of a run is its safety net"
    runs.fit(root, **options)
    assert names(root) == {"checkpoint-16", "checkpoint-24"}
    assert names(in_store(store)) == names(root)


def test_the_store_keeps_what_the_model_checkpoint_keeps(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    runs.fit(root, save={"every_n_train_steps": 2, "save_top_k": 1}, bt={"store": str(store)})
    assert names(root) == names(in_store(store)) == {"checkpoint-24"}


def test_a_lost_disk_is_replaced_by_the_store(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    options = {"save": {"every_n_train_steps": 8, "save_top_k": -1}, "bt": {"store": str(store)}}
    reference = runs.fit(tmp_path / "reference", save=options["save"])
    runs.fit(root, make=lambda: runs.Net(17), **options)
    shutil.rmtree(root)
    run = runs.fit(root, **options)
    assert run.first_step == 16
    assert run.outcome == reference.outcome
    assert names(root) == {"checkpoint-24"}, "it is read straight into the tensors"
    assert names(in_store(store)) == {"checkpoint-8", "checkpoint-16", "checkpoint-24"}


def test_checkpoints_of_weights_only_are_passed_over_with_the_reason(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = {"every_n_train_steps": 3, "save_weights_only": True}
    runs.fit(tmp_path, make=lambda: runs.Net(7), save=save)
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        run = runs.fit(tmp_path, make=lambda: runs.Net(2), save=save)
    assert run.first_step == 0
    assert f"{tmp_path / 'checkpoint-6'}: refused, it holds weights only" in caplog.text


# settings that cannot work


def test_our_model_checkpoint_alone_says_what_it_needs(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"needs BTLightning\(\)"):
        runs.fit(tmp_path, callbacks=[BTModelCheckpoint()])


def test_our_model_checkpoint_works_beside_the_callback(
    runs: ModuleType, names: Names, tmp_path: Path
) -> None:
    ours = BTModelCheckpoint(every_n_train_steps=12, save_top_k=-1, filename="at-{step}")
    runs.fit(tmp_path, callbacks=[ours, BTLightning(dir=tmp_path)])
    assert names(tmp_path) == {"at-step=12", "at-step=24"}


# the command line of Lightning, and scripts


@pytest.mark.filterwarnings("ignore:(?s).*JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("ignore:(?s).*deprecated in v4")  # what Lightning calls of jsonargparse
def test_lightning_cli_takes_both_callbacks_and_their_options(
    runs: ModuleType, names: Names, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    environ.chdir(tmp_path)
    environ.setattr("sys.argv", ["train.py"])
    quiet = [
        f"--trainer.{name}={'null' if value is None else str(value).lower()}"
        for name, value in runs.QUIET.items()
    ]
    cli = LightningCLI(
        BoringModel,
        BoringDataModule,
        save_config_callback=None,
        args=[
            "fit",
            "--seed_everything=1",
            *quiet,
            "--trainer.max_steps=6",
            "--trainer.callbacks+=bt_lightning.BTLightning",
            f"--trainer.callbacks.dir={tmp_path / 'root'}",
            "--trainer.callbacks.resume=auto",
            "--trainer.callbacks.drain_timeout=0:01:00",
            "--trainer.callbacks.save_at_end=false",
            "--trainer.callbacks+=bt_lightning.BTModelCheckpoint",
            "--trainer.callbacks.every_n_train_steps=2",
            "--trainer.callbacks.save_top_k=-1",
            "--trainer.callbacks.save_last=link",
        ],
    )
    assert type(cli.trainer.checkpoint_callback).__name__ == "BTModelCheckpoint"
    assert names(tmp_path / "root") == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


BORING = """
from {package}.demos.boring_classes import BoringModel
{more}
from bt_lightning import BTLightning
trainer = Trainer(
    accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=4, limit_val_batches=1,
    logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[BTLightning(dir="{root}", store="{root}-store"){callbacks}]{options},
)
{fit}
"""
PL_ONLY = BORING.format(
    package="pytorch_lightning",
    more="from pytorch_lightning import Trainer",
    root="{root}",
    callbacks=", BTModelCheckpoint(every_n_train_steps=2)",
    options="",
    fit="""
trainer.fit(BoringModel())
import sys
assert "lightning.pytorch" not in sys.modules
trainer.test(ckpt_path="best")
BoringModel.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
print("callbacks", [type(c).__name__ for c in trainer.checkpoint_callbacks])
""",
).replace("import BTLightning", "import BTLightning, BTModelCheckpoint")


def test_a_script_that_imports_pytorch_lightning_alone_works(
    scripts: Any, names: Names, tmp_path: Path
) -> None:
    """It has no main guard either."""
    root = tmp_path / "root"
    done = scripts.run(PL_ONLY.replace("{root}", str(root)), fresh=True)
    assert done.out.count("callbacks ['BTModelCheckpoint']") == 1
    assert names(root) == {"checkpoint-4"}


@pytest.mark.skipif(OLD, reason="Trainers before 2.6 refuse callbacks of the other package")
def test_mixing_the_two_packages_says_which_import_to_drop(scripts: Any, tmp_path: Path) -> None:
    text = """
    import pytorch_lightning
    from bt_lightning import BTLightning, BTModelCheckpoint, InvalidSettingError
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel
    import sys
    trainer = Trainer(accelerator="cpu", logger=False,
        callbacks=[BTLightning(dir=sys.argv[1]), BTModelCheckpoint()])
    try:
        trainer.fit(BoringModel())
    except InvalidSettingError as error:
        print("refused:", error)
    """
    done = scripts.run(text, tmp_path / "root", fresh=True)
    assert "refused: BTModelCheckpoint was made for pytorch_lightning" in done.out
    assert "import only one of them, before bt_lightning" in done.out


def test_a_script_from_stdin_without_a_main_guard_works(
    scripts: Any, names: Names, tmp_path: Path
) -> None:
    """The worker is a spawned process: it must not run the script a second time."""
    root = tmp_path / "root"
    text = BORING.format(
        package="lightning.pytorch",
        more="from lightning.pytorch import Trainer",
        root=root,
        callbacks="",
        options="",
        fit='trainer.fit(BoringModel()); print("trained")',
    )
    done = scripts.run(text, stdin=True)
    assert done.out.count("trained") == 1
    assert names(root) == names(in_store(Path(f"{root}-store"))) == {"checkpoint-4"}


def test_spawned_ranks_get_a_callback_without_processes(
    scripts: Any, names: Names, tmp_path: Path
) -> None:
    text = """
    import sys
    import plugin_runs as runs
    from bt_lightning import BTLightning

    if __name__ == "__main__":
        root = sys.argv[1]
        trainer = runs.trainer(root, BTLightning(dir=root), strategy="ddp_spawn", max_epochs=1)
        module = runs.Net()
        trainer.fit(module, runs.loader())
        print("best", trainer.checkpoint_callback.best_model_path)
    """
    done = scripts.run(text, tmp_path / "root")
    assert f"best {tmp_path / 'root' / 'checkpoint-8'}" in done.out
    assert names(tmp_path / "root") == {"checkpoint-8"}
    assert json.loads((tmp_path / "root/.bt_lightning/latest.json").read_text())["step"] == 8
