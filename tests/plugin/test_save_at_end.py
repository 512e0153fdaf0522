"""The state that a fit ends with is saved, whatever the `ModelCheckpoint`s save."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

needs_26 = pytest.mark.skipif(
    tuple(map(int, version("lightning").split(".")[:2])) < (2, 6),
    reason="Lightning before 2.6 is not exact inside an epoch",
)
LAST_STEP = 24  # of 3 epochs


def names(root: Path) -> set[str]:
    return {one.path.relative_to(root).as_posix() for one in list_committed(root).found}


def none(runs: ModuleType, root: Path, *more: Any, **options: Any) -> Any:
    """A fit without any `ModelCheckpoint`."""
    bt = runs.BTLightning(dir=root, **options.pop("bt", {}))
    return runs.fit(root, *more, callbacks=[bt], enable_checkpointing=False, **options)


def stop_at(runs: ModuleType, step: int) -> Any:
    class StopAt(runs.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == step

    return StopAt()


@pytest.mark.parametrize(
    "save",
    [
        {"monitor": "step_of_run", "mode": "min", "save_top_k": 1},
        {"every_n_epochs": 2},
        {"save_weights_only": True},
        {"save_top_k": 0},
        {"every_n_train_steps": 5, "save_top_k": -1},
    ],
    ids=["not_the_best", "every_second_epoch", "weights_only", "saves_none", "every_5_steps"],
)
def test_what_no_model_checkpoint_saves(
    runs: ModuleType, tmp_path: Path, save: dict[str, Any]
) -> None:
    class Logs(runs.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("step_of_run", float(trainer.global_step))

    run = runs.fit(tmp_path, Logs(), save=save)
    newest = list_committed(tmp_path).found[0]
    assert newest.path.name == f"final-{LAST_STEP}"
    assert newest.manifest.origin["interim"] == "end"
    again = runs.fit(tmp_path, Logs(), save=save)
    assert not again.module.steps, "nothing is left to train"
    assert again.outcome == run.outcome


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, LAST_STEP),
        ({"max_epochs": -1, "max_steps": 11}, 11),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),
        ({"limit_val_batches": 0}, LAST_STEP),
        ({"max_epochs": 2, "min_epochs": 2, "stop": 3}, 16),
        ({"stop": 11}, 11),
    ],
    ids=["epochs", "steps", "accumulated", "no_validation", "stopped_too_early", "stopped"],
)
def test_a_fit_without_any_checkpointing(
    runs: ModuleType, tmp_path: Path, options: dict[str, Any], step: int
) -> None:
    stop = options.pop("stop", None)
    run = none(runs, tmp_path, *([stop_at(runs, stop)] if stop else []), **options)
    assert run.trainer.global_step == step
    assert names(tmp_path) == {f"final-{step}"}


def test_trains_on_from_there_as_if_it_had_not_ended(runs: ModuleType, tmp_path: Path) -> None:
    right = none(runs, tmp_path / "right", max_epochs=4)
    none(runs, tmp_path / "run", max_epochs=2)
    longer = none(runs, tmp_path / "run", max_epochs=4)
    assert longer.first_step == 16
    assert longer.outcome == right.outcome
    assert names(tmp_path / "run") == {"final-32", "final-16"}, "never by the run that began there"
    none(runs, tmp_path / "run", max_epochs=5)
    assert names(tmp_path / "run") == {"final-40", "final-32"}


def test_no_state_is_saved_twice(runs: ModuleType, tmp_path: Path) -> None:
    runs.fit(tmp_path, save={})
    assert names(tmp_path) == {f"checkpoint-{LAST_STEP}"}


@needs_26
def test_a_save_of_the_step_inside_an_epoch_is_enough(runs: ModuleType, tmp_path: Path) -> None:
    save, steps = {"every_n_train_steps": 1, "save_top_k": 1}, {"max_epochs": -1, "max_steps": 11}
    right = runs.fit(tmp_path / "right", save=save, max_epochs=-1, max_steps=20)
    runs.fit(tmp_path / "run", save=save, **steps)
    assert names(tmp_path / "run") == {"checkpoint-11"}
    longer = runs.fit(tmp_path / "run", save=save, max_epochs=-1, max_steps=20)
    assert longer.first_step == 11
    assert longer.outcome == right.outcome


def test_a_last_save_that_would_be_skipped_is_made(runs: ModuleType, tmp_path: Path) -> None:
    save = {"every_n_train_steps": 1, "save_top_k": -1}
    runs.fit(tmp_path, save=save, bt={"overlap": "skip"})
    newest = list_committed(tmp_path).found[0]
    assert newest.manifest.step == LAST_STEP


@pytest.mark.parametrize("off", ["argument", "variable", "trial"])
def test_switched_off(
    runs: ModuleType, tmp_path: Path, environ: pytest.MonkeyPatch, off: str
) -> None:
    bt, options = {}, {}
    if off == "argument":
        bt["save_at_end"] = False
    elif off == "variable":
        environ.setenv("BT_SAVE_AT_END", "0")
    else:
        options["fast_dev_run"] = True
    none(runs, tmp_path, bt=bt, **options)
    assert names(tmp_path) == set()


def test_a_fit_that_fails_has_no_end(runs: ModuleType, tmp_path: Path) -> None:
    def fail() -> None:
        raise runs.StoppedError

    run = none(runs, tmp_path, make=lambda: runs.Net(LAST_STEP - 1, end=fail))
    assert run.stopped
    assert names(tmp_path) == set()
