"""A run that was saved or killed before the end of a validation makes all of it again."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torchmetrics import MeanMetric

from bt_lightning import BTLightning
from bt_lightning.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 is not exact inside an epoch")
STEPS = {"every_n_train_steps": 1, "save_top_k": -1}


class Act(Callback):
    """Saves, or ends the run, at one call of a hook while training."""

    def __init__(self, hook: str, step: int, call: int, act: Any) -> None:
        self.step, self.call, self.calls, self.act = step, call, 0, act
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            self.calls += 1
            if self.calls == self.call:
                self.act(trainer)


@pytest.fixture
def drawing(runs: ModuleType) -> Any:
    """Validation draws; its mean is kept by an object that nothing but the module resets."""

    class Drawing(runs.Net):
        plateau = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mean = MeanMetric()
            self.seen: list[Any] = []

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            self.log("mean", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            found = self.net(batch).mean() + torch.rand(())
            self.mean.update(found)
            self.log("val", found)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.seen.append((self.trainer.global_step, self.mean.compute().item()))
            self.mean.reset()

        def on_train_epoch_end(self) -> None:
            self.seen.append(self.trainer.callback_metrics["mean"].item())

        def configure_optimizers(self) -> Any:
            if not self.plateau:
                return super().configure_optimizers()
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, 0)
            named = {"scheduler": scheduler, "interval": self.plateau, "monitor": "val"}
            if self.plateau == "step":
                named["frequency"] = 4
            return {"optimizer": optimizer, "lr_scheduler": named}

    return Drawing


def stopping() -> Any:
    """Counts the validations."""
    return EarlyStopping("val", patience=99)


@needs_26
@pytest.mark.parametrize(
    ("stateful", "plateau"), [(True, ""), (True, "step"), (True, "epoch"), (False, "")]
)
@pytest.mark.parametrize(
    ("hook", "step", "call"),
    [
        ("on_train_batch_end", 12, 1),
        ("on_train_batch_end", 16, 1),
        ("on_validation_start", 12, 1),
        ("on_validation_batch_end", 16, 2),
    ],
)
def test_a_save_before_the_end_of_a_validation_is_resumed_with_all_of_it(
    runs: ModuleType,
    drawing: Any,
    tmp_path: Path,
    caplog: Any,
    hook: str,
    step: int,
    call: int,
    stateful: bool,
    plateau: str,
) -> None:
    """A validation inside each epoch, of 8 steps, and one at its end."""
    drawing.plateau = plateau
    options = {
        "make": drawing,
        "val_check_interval": 4,
        "enable_checkpointing": False,
        "loader_options": {"stateful": stateful},
    }
    whole = runs.fit(tmp_path, callbacks=[stopping()], **options)

    def fit(*more: Any, seed: int = 1) -> Any:
        return runs.fit(
            tmp_path, callbacks=[BTLightning(dir=tmp_path), stopping(), *more], seed=seed, **options
        )

    def save(trainer: Any) -> None:
        trainer.save_checkpoint(tmp_path / "mine")
        runs.stop()

    assert fit(Act(hook, step, call, save)).stopped
    resumed = fit(seed=99)
    assert resumed.first_step == step
    assert resumed.outcome == whole.outcome
    assert resumed.trainer.callback_metrics == whole.trainer.callback_metrics
    assert resumed.module.seen == whole.module.seen[-len(resumed.module.seen) :]
    assert len(resumed.module.seen) == (6 if step == 12 else 5)
    assert "not exact" not in caplog.text


@needs_26
@pytest.mark.parametrize("bt", [{}, {"interval": 1e-6}], ids=["steps", "interval"])
def test_a_run_that_is_killed_in_its_validations_makes_them_again(
    runs: ModuleType, drawing: Any, names: Any, tmp_path: Path, caplog: Any, bt: Any
) -> None:
    options = {"make": drawing, "val_check_interval": 4, "save": STEPS, "bt": bt}
    options["loader_options"] = {"stateful": True}
    whole = runs.fit(tmp_path / "whole", stopping(), **options)
    for seed, (hook, step, call) in enumerate(
        [
            ("on_validation_batch_end", 4, 1),
            ("on_validation_epoch_end", 8, 1),
            ("on_validation_start", 12, 1),
            ("on_validation_end", 16, 1),
        ]
    ):
        kill = Act(hook, step, call, lambda _: die())
        with pytest.raises(CheckpointError, match=_DIED):
            runs.fit(tmp_path / "run", stopping(), kill, seed=seed + 1, **options)
    resumed = runs.fit(tmp_path / "run", stopping(), seed=99, **options)
    assert resumed.first_step in {14, 15, 16}
    assert resumed.outcome == whole.outcome
    assert resumed.trainer.callback_metrics == whole.trainer.callback_metrics
    assert names(tmp_path / "run") >= names(tmp_path / "whole")
    assert "not exact" not in caplog.text


def die() -> None:
    """End the run as a kill does: nothing is saved because of it."""
    raise CheckpointError(_DIED)


_DIED = "killed"


@needs_26
@pytest.mark.parametrize("what", ["weights", "metric", "a buffer that counts no writes"])
def test_a_validation_that_changed_what_goes_on_is_said_not_to_be_made_up_for(
    runs: ModuleType, drawing: Any, tmp_path: Path, caplog: Any, what: str
) -> None:
    class Changes(drawing):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(2))

        def on_train_start(self) -> None:
            self.mean.reset()

        def on_validation_start(self) -> None:
            if what == "metric":
                self.mean.update(1.0)
            elif what != "weights":
                with torch.inference_mode():
                    self.last = torch.ones(2)
            else:
                torch.nn.init.zeros_(self.net[3].bias)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.mean.update(2.0)
            return super().training_step(batch, index)

    def save(trainer: Any) -> None:
        trainer.save_checkpoint(tmp_path / "mine")
        runs.stop()

    options = {"make": Changes, "val_check_interval": 4, "enable_checkpointing": False}
    one = BTLightning(dir=tmp_path)
    act = Act("on_validation_batch_end", 4, 1, save)
    assert runs.fit(tmp_path, callbacks=[one, act], **options).stopped
    resumed = runs.fit(tmp_path, callbacks=[BTLightning(dir=tmp_path)], **options)
    assert resumed.first_step == 4
    assert "in the middle of a validation that is not made up for" in caplog.text
