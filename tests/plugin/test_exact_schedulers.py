"""The learning rate of a resumed run is that of the uninterrupted one, whatever the scheduler.

Lightning steps a scheduler with a metric behind the hooks that save: by steps after the validation,
by epochs after the epoch's end.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 makes the iterator of a resumed epoch twice"
)

EPOCH = {"every_n_epochs": 1}
TRAIN_END = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
LAST_BATCH = {"every_n_train_steps": 8}
MID = {"every_n_train_steps": 3}
STATEFUL = {"stateful": True}


def plateau(optimizer: Any, interval: str, monitor: str, **more: Any) -> dict[str, Any]:
    """Halves the learning rate at each of its steps but the first."""
    import torch

    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=100.0
    )
    return {"scheduler": scheduler, "interval": interval, "monitor": monitor, **more}


def with_schedulers(runs: ModuleType, kinds: list[str]) -> Any:
    """A module with the schedulers of these kinds."""
    import torch

    class Scheduled(runs.Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            made = {
                "by epochs": lambda: plateau(optimizer, "epoch", "val"),
                "every other epoch": lambda: plateau(optimizer, "epoch", "loss", frequency=2),
                "by steps": lambda: plateau(optimizer, "step", "loss"),
                "by validations": lambda: plateau(optimizer, "step", "val", frequency=4),
                "not strict": lambda: plateau(optimizer, "epoch", "nothing", strict=False),
                "step_lr": lambda: {
                    "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9),
                    "interval": "epoch",
                },
                "one cycle": lambda: {
                    "scheduler": torch.optim.lr_scheduler.OneCycleLR(
                        optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches
                    ),
                    "interval": "step",
                },
            }
            return [optimizer], [made[kind]() for kind in kinds]

    return Scheduled


def case(name: str, kinds: str, save: dict[str, Any], *stops: int, **options: Any) -> Any:
    mid = any(stop % 8 != 1 for stop in stops)
    loader = STATEFUL if mid else {}
    marks = (needs_26,) if mid else ()
    return pytest.param((kinds.split(", "), save, stops, loader, options), id=name, marks=marks)


CASES = [
    case("by_epochs-validation", "by epochs", EPOCH, 9, 17),
    case("by_epochs-train_end", "by epochs", TRAIN_END, 9, 17),
    case("by_epochs-last_batch", "by epochs", LAST_BATCH, 9, 17),
    case("by_epochs-middle", "by epochs", MID, 7, 14, 20),
    case("by_epochs-max_steps", "by epochs", EPOCH, 9, 17, max_steps=24),
    case("by_epochs-middle-max_steps", "by epochs", MID, 7, 14, 20, max_steps=24),
    case("every_other_epoch", "every other epoch", EPOCH, 9, 17, max_epochs=4),
    case("by_steps-epoch", "by steps", EPOCH, 9, 17),
    case("by_steps-middle", "by steps", MID, 7, 14, 20),
    case("by_steps-accumulate", "by steps", MID, 4, 8, accumulate_grad_batches=2),
    case("by_validations", "by validations", MID, 7, 14, 20, val_check_interval=4),
    case(
        "by_validations-saved_at_them",
        "by validations",
        {"every_n_train_steps": 4},
        6,
        14,
        20,
        val_check_interval=4,
    ),
    case("without_its_metric", "not strict", EPOCH, 9),
    case("several", "step_lr, by epochs, by steps", EPOCH, 9, 17),
    case("several-middle", "by steps, step_lr, by epochs", MID, 7, 14),
    case("one_cycle-epoch", "one cycle", EPOCH, 9, 17),
    case("one_cycle-middle", "one cycle", MID, 7, 14, 20),
]


def chain(runs: ModuleType, root: Path, make: Any, stops: tuple[int, ...], **options: Any) -> Any:
    """Interrupt at each of `stops`, with other seeds each time, then run to the end."""
    for number, stop in enumerate(stops):
        run = runs.fit(root, seed=1 + 100 * number, make=partial(make, stop), **options)
        assert run.stopped, f"the run ended before step {stop}"
    return runs.fit(root, seed=99, make=make, **options)


def progress(trainer: Any) -> Any:
    """How many steps of schedulers Lightning counts."""
    return trainer.fit_loop.epoch_loop.scheduler_progress.state_dict()


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric nothing")
@pytest.mark.filterwarnings("ignore:Skipping learning rate update")
@pytest.mark.parametrize("what", CASES)
def test_schedulers_go_on_as_in_the_uninterrupted_run(
    runs: ModuleType, tmp_path: Path, what: Any
) -> None:
    kinds, save, stops, loader, options = what
    make = with_schedulers(runs, kinds)
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader, **options}
    reference = runs.fit(tmp_path / "reference", make=make, **options)
    resumed = chain(runs, tmp_path / "run", make, stops, **options)
    assert 0 < resumed.first_step <= stops[-1]
    assert resumed.outcome == reference.outcome
    assert progress(resumed.trainer) == progress(reference.trainer)


def test_a_step_of_the_users_own_gets_the_metric_of_the_save(
    runs: ModuleType, tmp_path: Path
) -> None:
    """`lr_scheduler_step` is called as Lightning would have called it, with the same value."""

    class Own(with_schedulers(runs, ["by epochs"])):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.seen: list[tuple[str, float]] = []

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.seen.append((type(scheduler).__name__, metric.item()))
            super().lr_scheduler_step(scheduler, metric)

    options = {"save": {"save_top_k": -1, **EPOCH}}
    reference = runs.fit(tmp_path / "reference", make=Own, **options)
    resumed = chain(runs, tmp_path / "run", Own, (17,), **options)
    assert len(reference.module.seen) == 3
    assert resumed.module.seen == reference.module.seen[1:]
    assert resumed.outcome == reference.outcome


def test_manual_optimization_steps_its_own_schedulers(runs: ModuleType, tmp_path: Path) -> None:
    """A scheduler that the user steps is stepped by nobody else."""

    class Manual(runs.TwoOptimizers):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            raise AssertionError

        def configure_optimizers(self) -> Any:
            import torch

            one, other = super().configure_optimizers()[0]
            lr_scheduler = torch.optim.lr_scheduler
            return [one, other], [
                lr_scheduler.StepLR(one, 1, 0.9),
                lr_scheduler.ReduceLROnPlateau(other),
            ]

        def lr_schedulers(self) -> Any:
            return super().lr_schedulers()[:1]

    options = {"save": {"save_top_k": -1, **EPOCH}}
    reference = runs.fit(tmp_path / "reference", make=Manual, **options)
    resumed = chain(runs, tmp_path / "run", Manual, (18,), **options)
    assert resumed.outcome == reference.outcome


@pytest.mark.parametrize("kinds", ["by epochs", "by epochs, step_lr, one cycle"])
def test_a_fit_that_had_ended_leaves_the_rates_of_its_end(
    runs: ModuleType, tmp_path: Path, kinds: str
) -> None:
    make = with_schedulers(runs, kinds.split(", "))
    first = runs.fit(tmp_path, make=make, save=EPOCH)
    again = runs.fit(tmp_path, make=make, save=EPOCH)
    assert not again.module.steps, "nothing is left to train"
    assert again.outcome == first.outcome
    assert progress(again.trainer) == progress(first.trainer)


def test_a_save_before_its_metric_is_there_gets_it_from_the_validation(
    runs: ModuleType, tmp_path: Path
) -> None:
    """User code saves at the last batch, before the validation that the scheduler waits for."""
    from bt_lightning import BTLightning

    def fit(seed: int, stop: int | None = None, root: Path = tmp_path / "run") -> Any:
        callbacks = [BTLightning(dir=root), runs.SaveAtLastBatch(root)]
        return runs.fit(
            root,
            callbacks=callbacks,
            make=partial(with_schedulers(runs, ["by epochs"]), stop),
            seed=seed,
            enable_checkpointing=False,
        )

    assert fit(1, 9).stopped
    right = fit(1, root=tmp_path / "right")
    again = fit(2)
    assert again.first_step == 8
    assert again.outcome == right.outcome


def test_a_save_when_an_epoch_starts_skips_no_epoch(runs: ModuleType, tmp_path: Path) -> None:
    """User code saves in `on_train_epoch_start`: no batch of this epoch is trained."""
    from lightning.pytorch.callbacks import Callback

    from bt_lightning import BTLightning

    class SaveAtEpochStart(Callback):
        def __init__(self, root: Path) -> None:
            self.root = root

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step:
                trainer.save_checkpoint(self.root / f"mine-{trainer.global_step}")

    def fit(root: Path, seed: int, stop: int | None = None) -> Any:
        return runs.fit(
            root,
            callbacks=[BTLightning(dir=root), SaveAtEpochStart(root)],
            make=partial(with_schedulers(runs, ["by epochs"]), stop),
            seed=seed,
            enable_checkpointing=False,
        )

    reference = fit(tmp_path / "reference", 1)
    assert fit(tmp_path / "run", 1, 9).stopped
    resumed = fit(tmp_path / "run", 2)
    assert resumed.first_step == 8
    assert resumed.outcome == reference.outcome
