"""A resume that cannot be exact says why, in one line; one that is exact says nothing."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from bt_lightning import BTLightning

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.matrix

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 is not exact inside an epoch")
STATEFUL = {"stateful": True}
CLOCK = timedelta(microseconds=1)
EPOCH = {"every_n_epochs": 1, "save_top_k": -1}
STEPS = {"every_n_train_steps": 1, "save_top_k": -1}


class SaveAtBatch(Callback):
    """User code that saves at once, behind one batch of the run."""

    def __init__(self, batch: int, root: Path, hook: str = "on_train_batch_end") -> None:
        self.batch, self.root, self.seen = batch, root, 0
        setattr(self, hook, self.save)

    def save(self, trainer: Any, *args: Any) -> None:
        self.seen += not trainer.sanity_checking
        if self.seen == self.batch:
            trainer.save_checkpoint(self.root / "mine")


def resumed(runs: ModuleType, root: Path, caplog: Any, make: Any, stop_at: int, **how: Any) -> str:
    """Interrupt and start again; the line that the second start says."""
    more = how.pop("more", list)
    runs.fit(root, *more(), make=partial(make, stop_at), **how)
    caplog.clear()
    with caplog.at_level("WARNING", "bt_lightning"):
        run = runs.fit(root, *more(), make=make, **how)
    assert run.first_step > 0
    lines = [r.message for r in caplog.records if "not exact" in r.message]
    assert len(lines) <= 1
    return lines[0] if lines else ""


@pytest.mark.parametrize(
    ("save", "loader", "stop_at"),
    [
        (EPOCH, {}, 9),
        pytest.param(STEPS, STATEFUL, 5, marks=pytest.mark.skipif(OLD, reason="says")),
    ],
)
def test_an_exact_resume_says_nothing(
    runs: ModuleType, tmp_path: Path, caplog: Any, save: Any, loader: Any, stop_at: int
) -> None:
    line = resumed(runs, tmp_path, caplog, runs.Net, stop_at, save=save, loader_options=loader)
    assert not line


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ({**STATEFUL, "workers": 1}, "random numbers that a dataset draws in workers"),
    ],
)
def test_what_a_loader_cannot_do_is_said(
    runs: ModuleType, tmp_path: Path, caplog: Any, loader: Any, said: str
) -> None:
    line = resumed(runs, tmp_path, caplog, runs.Net, 5, save=STEPS, loader_options=loader)
    assert said in line


def test_data_without_a_known_order_are_said_to_begin_anew(
    runs: ModuleType, tmp_path: Path, caplog: Any
) -> None:
    from torch.utils.data import DataLoader, RandomSampler

    class Own(RandomSampler):
        """A sampler of the user's."""

    class Sampled(runs.Net):
        def train_dataloader(self) -> Any:
            rows = runs.Numbers()
            return DataLoader(rows, batch_size=4, sampler=Own(rows))

    def fit(stop_at: int | None) -> Any:
        callbacks = [BTLightning(dir=tmp_path), ModelCheckpoint(**STEPS)]
        trainer = runs.trainer(tmp_path, *callbacks, max_epochs=1)
        module = Sampled(stop_at)
        with contextlib.suppress(runs.StoppedError):
            trainer.fit(module)
        return module

    fit(5)
    with caplog.at_level("WARNING", "bt_lightning"):
        assert fit(None).steps[0] == 5
    assert "DataLoader has no state, and no order that is known" in caplog.text


def test_hooks_of_the_users_that_do_not_run_again_are_named(
    runs: ModuleType, tmp_path: Path, caplog: Any
) -> None:
    class Hooked(runs.Net):
        def on_train_epoch_start(self) -> None:
            self.phase = self.current_epoch

        def on_train_batch_end(self, *args: Any) -> None:
            self.ended = True

    line = resumed(
        runs, tmp_path, caplog, Hooked, 5, save=STEPS, loader_options=STATEFUL, max_epochs=1
    )
    assert "Hooked.on_train_epoch_start does not run again inside an epoch" in line
    assert "on_train_batch_end" not in line


def test_a_save_by_user_code_in_a_hook_is_said_to_come_before_that_of_the_module(
    runs: ModuleType, tmp_path: Path, caplog: Any
) -> None:
    class Hooked(runs.Net):
        def on_train_batch_end(self, *args: Any) -> None:
            self.ended = True

    def callbacks() -> list[Any]:
        return [BTLightning(dir=tmp_path), SaveAtBatch(3, tmp_path)]

    options = {"loader_options": STATEFUL, "enable_checkpointing": False, "max_epochs": 1}
    runs.fit(tmp_path, make=partial(Hooked, 5), callbacks=callbacks(), **options)
    with caplog.at_level("WARNING", "bt_lightning"):
        run = runs.fit(tmp_path, make=Hooked, callbacks=callbacks()[:1], **options)
    assert run.first_step == 3
    assert "Hooked.on_train_batch_end runs behind the save that was made in it" in caplog.text


@pytest.mark.parametrize(
    ("batch", "hook", "every", "said"),
    [
        (3, "on_train_batch_end", 4, "gradients that were accumulated since the last step"),
        pytest.param(
            *(4, "on_train_batch_end", CLOCK, "between a batch and a validation that is not made"),
            marks=needs_26,
        ),
        pytest.param(
            *(
                3,
                "on_validation_batch_end",
                CLOCK,
                "in the middle of a validation that is not made",
            ),
            marks=needs_26,
        ),
    ],
)
def test_a_save_by_user_code_at_a_bad_moment_is_told_of(
    runs: ModuleType, tmp_path: Path, caplog: Any, batch: int, hook: str, every: Any, said: str
) -> None:
    """Accumulation of two batches, a validation every four, or behind each by the clock."""

    def callbacks() -> list[Any]:
        return [BTLightning(dir=tmp_path), SaveAtBatch(batch, tmp_path, hook)]

    options = {
        "accumulate_grad_batches": 2,
        "val_check_interval": every,
        "loader_options": STATEFUL,
        "enable_checkpointing": False,
        "max_epochs": 1,
    }
    runs.fit(tmp_path, make=partial(runs.Net, 3), callbacks=callbacks(), **options)
    with caplog.at_level("WARNING", "bt_lightning"):
        run = runs.fit(tmp_path, callbacks=callbacks()[:1], **options)
    assert run.first_step > 0
    assert said in caplog.text
    assert caplog.text.count("not exact") == 1


def test_a_run_that_early_stopping_ended_trains_nothing_when_it_is_started_again(
    runs: ModuleType, names: Any, tmp_path: Path, caplog: Any
) -> None:
    """Also when the kill came between the save and the end; it says so, and keeps what there is."""
    from lightning.pytorch.callbacks import EarlyStopping

    def fit(root: Path) -> Any:
        stopping = EarlyStopping("val", min_delta=100.0, patience=2)
        return runs.fit(root, stopping, save=EPOCH, max_epochs=9)

    whole = fit(tmp_path)
    kept = names(tmp_path)
    assert whole.trainer.current_epoch == 3
    with caplog.at_level("WARNING", "bt_lightning"):
        again = fit(tmp_path)
    assert caplog.text.count("nothing is left to train") == 1
    assert again.module.steps == []
    assert again.outcome["weights"] == whole.outcome["weights"]
    assert again.trainer.callback_metrics["val"] == whole.trainer.callback_metrics["val"]
    assert names(tmp_path) == kept
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        longer = runs.fit(tmp_path, save=EPOCH, max_epochs=9)
    assert longer.first_step == 24, "without the callback it trains on"
