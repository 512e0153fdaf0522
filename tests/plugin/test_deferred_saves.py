"""Saves that wait for the validation behind their step, and for the end of the epoch."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 trains a batch in an epoch again")
pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
LAST_BATCH = {"every_n_train_steps": 8, "save_top_k": -1}
HALF = {"every_n_train_steps": 4, "save_top_k": -1}


def metrics(root: Path) -> dict[int, dict[str, float]]:
    found = list_committed(root.resolve())[0]
    return {one.manifest.step: dict(one.manifest.metrics) for one in found}


@pytest.fixture
def noisy(runs: ModuleType) -> Any:
    """Validation draws from the generators, and so does the end of an epoch, which trains too."""
    import torch

    class Noisy(runs.Net):
        plateau = False

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val", self.net(batch).mean() + torch.rand(()))

        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                self.net[0].bias += 0.01 * torch.rand(())

        def configure_optimizers(self) -> Any:
            if not self.plateau:
                return super().configure_optimizers()
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, 0)
            named = {"scheduler": scheduler, "interval": "step", "frequency": 4, "monitor": "val"}
            return {"optimizer": optimizer, "lr_scheduler": named}

    return Noisy


@needs_26
@pytest.mark.parametrize("plateau", [False, True], ids=["by_epoch", "plateau"])
@pytest.mark.parametrize(
    "save",
    [
        pytest.param({"every_n_train_steps": 4}, id="steps"),
        pytest.param({"every_n_train_steps": 2, "monitor": "val"}, id="steps-monitor"),
        pytest.param({"every_n_epochs": 1, "monitor": "val"}, id="epochs"),
    ],
)
def test_a_save_behind_a_validation_in_or_at_the_end_of_an_epoch_is_resumed_exactly(
    runs: ModuleType, tmp_path: Path, noisy: Any, save: dict[str, Any], plateau: bool
) -> None:
    """Validation takes place after batches 4 and 8: resumed, it is neither repeated nor left out,
    and neither is what counts validations, or looks at them.
    """
    from lightning.pytorch.callbacks import EarlyStopping

    noisy.plateau = plateau
    options = {
        "save": {"save_top_k": -1, **save},
        "loader_options": {"stateful": True},
        "val_check_interval": 4,
    }
    reference = runs.fit(
        tmp_path / "reference", EarlyStopping("val", patience=99), make=noisy, **options
    )
    for seed, stop_at in enumerate((9, 14, 17)):
        patient = EarlyStopping("val", patience=99)
        make = partial(noisy, stop_at)
        assert runs.fit(
            tmp_path / "run", patient, make=make, seed=1 + 100 * seed, **options
        ).stopped
    patient = EarlyStopping("val", patience=99)
    resumed = runs.fit(tmp_path / "run", patient, make=noisy, seed=99, **options)
    assert resumed.first_step == 16
    assert resumed.outcome == reference.outcome


def test_a_resumed_run_saves_by_the_metric_of_the_last_validation_as_the_run_before_did(
    runs: ModuleType, tmp_path: Path
) -> None:
    save = {"every_n_train_steps": 1, "monitor": "val", "save_top_k": -1}
    options = {"save": save, "val_check_interval": 4, "loader_options": {"stateful": True}}
    first = runs.fit(tmp_path, make=partial(runs.Net, 8), max_epochs=2, **options)
    assert first.stopped
    before = metrics(tmp_path)[8]["val"]
    resumed = runs.fit(tmp_path, max_epochs=2, **options)
    assert resumed.first_step == 8
    after = metrics(tmp_path)
    assert set(after) >= set(range(4, 17))
    assert {step for step in after if after[step]["val"] == before} == {8, 9, 10, 11}


def failing(runs: ModuleType, at: int, **hooks: Any) -> Any:
    """A module whose validation behind step `at` fails."""

    class Failing(runs.Net):
        def validation_step(self, batch: Any, index: int) -> None:
            if self.trainer.global_step == at and index == 1:
                runs.stop()
            super().validation_step(batch, index)

    for name, hook in hooks.items():
        setattr(Failing, name, hook)
    return Failing


@pytest.mark.parametrize(
    ("save", "at", "options"),
    [
        pytest.param(LAST_BATCH, 8, {}, id="at_the_end_of_an_epoch"),
        pytest.param(HALF, 4, {"val_check_interval": 0.5}, id="in_an_epoch"),
    ],
)
def test_a_validation_that_fails_does_not_take_the_save_before_it_with_it(
    runs: ModuleType, tmp_path: Path, save: Any, at: int, options: Any
) -> None:
    """Plain Lightning has saved before that validation begins."""
    make = failing(runs, at)
    assert runs.fit(tmp_path, make=make, save=save, num_sanity_val_steps=0, **options).stopped
    assert set(metrics(tmp_path)) == {at}
    resumed = runs.fit(tmp_path, save=save, **options)
    assert resumed.first_step == at
    assert resumed.trainer.current_epoch == 3
    assert resumed.trainer.global_step == 24


def test_a_validation_that_fails_with_other_weights_leaves_no_checkpoint_of_them(
    runs: ModuleType, tmp_path: Path
) -> None:
    make = failing(runs, 8, on_validation_start=swap, on_validation_epoch_end=swap)
    with pytest.warns(UserWarning, match=r"step 8 was over.*a hook may have changed the weights"):
        assert runs.fit(tmp_path, make=make, save=LAST_BATCH).stopped
    assert metrics(tmp_path) == {}


def swap(module: Any) -> None:
    """Bring the other weights in, or back."""
    import torch

    with torch.no_grad():
        for weights in module.parameters():
            weights.neg_()


@pytest.mark.parametrize("back", ["on_validation_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("save", [LAST_BATCH, HALF], ids=["last_batch", "half"])
def test_weights_of_validation_alone_are_not_saved_for_those_of_training(
    runs: ModuleType, tmp_path: Path, save: Any, back: str
) -> None:
    """`on_validation_end` of the module comes after that of `ModelCheckpoint`."""

    trained: dict[int, str] = {}

    class Swapping(runs.Net):
        def on_train_batch_end(self, *args: Any) -> None:
            trained[self.trainer.global_step] = runs.digest(self.state_dict())

    Swapping.on_validation_start = swap
    setattr(Swapping, back, swap)
    runs.fit(tmp_path, make=Swapping, save=save, val_check_interval=0.5, max_epochs=2)
    found = metrics(tmp_path)
    assert set(found) == ({8, 16} if save == LAST_BATCH else {4, 8, 12, 16})
    for step in found:
        state = BTCheckpointIO().load_checkpoint(tmp_path / f"checkpoint-{step}")["state_dict"]
        assert runs.digest(state) == trained[step]


def test_a_save_that_waits_for_a_validation_without_batches_is_made(
    runs: ModuleType, tmp_path: Path
) -> None:
    from torch.utils.data import DataLoader

    module = runs.Net()
    saver = runs.ModelCheckpoint(**HALF)
    options = {"check_val_every_n_epoch": 2, "val_check_interval": 2, "num_sanity_val_steps": 0}
    trainer = runs.trainer(tmp_path, runs.BTLightning(dir=tmp_path), saver, max_epochs=2, **options)
    with pytest.warns(UserWarning, match="across ranks is zero"):
        trainer.fit(module, runs.loader(), DataLoader([]))
    assert set(metrics(tmp_path)) == {4, 8, 12, 16}


def test_saves_by_time_are_made_at_every_step_that_they_are_due_at(
    runs: ModuleType, tmp_path: Path
) -> None:
    from datetime import timedelta

    save = {"train_time_interval": timedelta(microseconds=1), "save_top_k": -1}
    runs.fit(tmp_path, save=save, max_epochs=1)
    assert set(metrics(tmp_path)) == set(range(1, 9))


def test_last_is_saved_anew_where_nothing_else_is_there_to_link_it_to(
    runs: ModuleType, tmp_path: Path
) -> None:
    save = {"monitor": "never", "save_last": "link", "every_n_train_steps": 4}
    with_nothing_to_rank_by = {"max_epochs": 1, "limit_val_batches": 0}
    runs.fit(tmp_path, save=save, **with_nothing_to_rank_by)
    assert not (tmp_path / "last").is_symlink()
    assert set(metrics(tmp_path)) == {8}
