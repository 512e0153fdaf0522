"""A resumed training begins at the step and epoch of its checkpoint, or not at all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import BTCheckpointIO, CheckpointError, ResumeMismatchError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SAVE = {"every_n_train_steps": 3, "save_top_k": -1}


def resetting() -> Any:
    """A callback that clears what was loaded when the fit starts, as a search by trials does."""
    from lightning.pytorch.callbacks import Callback

    class Resets(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            trainer._checkpoint_connector._loaded_checkpoint = {}

    return Resets()


def test_a_training_that_was_reset_after_its_restore_is_an_error(
    runs: ModuleType, tmp_path: Path
) -> None:
    """Lightning would train from step 0 with the weights of step 6 and a fresh optimizer."""
    runs.fit(tmp_path, make=partial(runs.Net, 7), save=SAVE)
    with pytest.raises(ResumeMismatchError, match=r"begins at step 0, .* is of step 6"):
        runs.fit(tmp_path, resetting(), seed=2, save=SAVE)


def test_a_path_that_the_user_gives_is_checked_as_well(runs: ModuleType, tmp_path: Path) -> None:
    runs.fit(tmp_path, make=partial(runs.Net, 7), save=SAVE)
    path = str(tmp_path / "checkpoint-3")
    with pytest.raises(RuntimeError, match="is of step 3") as caught:
        runs.fit(tmp_path, resetting(), save=SAVE, ckpt_path=path)
    assert isinstance(caught.value, CheckpointError)


def test_weights_alone_begin_at_step_0(runs: ModuleType, tmp_path: Path) -> None:
    runs.fit(tmp_path / "first", make=partial(runs.Net, 7), save=SAVE)
    bt = {"resume": "weights", "load_dir": str(tmp_path / "first")}
    assert runs.fit(tmp_path / "second", save=SAVE, bt=bt).first_step == 0


def test_a_module_that_edits_the_progress_it_loads_has_its_way(
    runs: ModuleType, tmp_path: Path
) -> None:
    """A user may begin the counters anew on purpose, in `on_load_checkpoint`."""

    class Anew(runs.Net):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["loops"] = BTCheckpointIO().load_checkpoint(start)["loops"]
            checkpoint["global_step"] = 3

    runs.fit(tmp_path, make=partial(runs.Net, 7), save=SAVE)
    start = tmp_path / "checkpoint-3"
    resumed = runs.fit(tmp_path, make=Anew, save=SAVE, max_epochs=1)
    assert resumed.first_step == 3
