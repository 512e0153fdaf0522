"""What was searched for at the start of a run is kept, and nothing is searched again."""

from __future__ import annotations

import logging
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

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
]
EPOCH = {"every_n_epochs": 1, "save_top_k": -1}
MID = {"every_n_train_steps": 3, "save_top_k": -1}
ROWS = 32


def module_class(runs: ModuleType, *, stateful: bool, in_data: bool, total: bool) -> Any:
    import lightning as L
    import torch

    class Loads:
        """A module or a datamodule with the batch size."""

        def train_dataloader(self) -> Any:
            kind: Any = torch.utils.data.DataLoader
            if stateful:
                from torchdata.stateful_dataloader import StatefulDataLoader

                kind = StatefulDataLoader
            return kind(runs.Numbers(length=ROWS), batch_size=self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(runs.Numbers(length=8), batch_size=self.batch_size)

    class Data(Loads, L.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2

    class Searched(*(() if in_data else (Loads,)), runs.Net):
        data_class = Data

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if not in_data:
                self.batch_size = 2
            self.sizes: list[int] = []

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.sizes.append(len(batch))
            return super().training_step(batch, index)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            steps = self.trainer.estimated_stepping_batches if total else 64
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: max(0.0, 1 - step / steps)
            )
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Searched


def fit(
    runs: ModuleType, root: Path, make: Any, callback: Any, save: Any, seed: int = 1, **bt: Any
) -> Any:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning import BTLightning

    L.seed_everything(seed)
    callbacks = [callback(), BTLightning(dir=root, **bt), ModelCheckpoint(**save)]
    trainer = runs.trainer(root, *callbacks)
    run = runs.Run(trainer, make())
    data = None if hasattr(run.module, "batch_size") else run.module.data_class()
    try:
        trainer.fit(run.module, datamodule=data)
    except runs.StoppedError:
        run.stopped = True
    else:
        run.outcome = {**runs.outcome(trainer), "lr": run.module.lr, "sizes": run.module.sizes[-1]}
        run.outcome["size"] = (data or run.module).batch_size
    return run


def size_finder() -> Any:
    from lightning.pytorch.callbacks import BatchSizeFinder

    return BatchSizeFinder(max_trials=2, steps_per_trial=1)


def rate_finder() -> Any:
    from lightning.pytorch.callbacks import LearningRateFinder

    return LearningRateFinder(num_training_steps=12, min_lr=1e-4, early_stop_threshold=None)


CASES = [
    pytest.param((size_finder, EPOCH, 9, {}), id="size-epoch"),
    pytest.param((size_finder, EPOCH, 9, {"in_data": True}), id="size-datamodule"),
    pytest.param((size_finder, MID, 7, {"stateful": True}), id="size-middle", marks=needs_26),
    pytest.param((size_finder, EPOCH, 9, {"total": True}), id="size-estimated_batches"),
    pytest.param((rate_finder, EPOCH, 17, {}), id="rate-epoch"),
    pytest.param((rate_finder, MID, 20, {"stateful": True}), id="rate-middle", marks=needs_26),
]


@pytest.mark.parametrize("what", CASES)
def test_a_resumed_run_goes_on_with_what_was_found(
    runs: ModuleType, tmp_path: Path, what: Any
) -> None:
    callback, save, stop, options = what
    make = module_class(runs, **{"stateful": False, "in_data": False, "total": False, **options})
    reference = fit(runs, tmp_path / "reference", make, callback, save)
    first = fit(runs, tmp_path / "run", partial(make, stop), callback, save)
    assert first.stopped
    resumed = fit(runs, tmp_path / "run", make, callback, save, seed=99)
    assert 0 < resumed.first_step <= stop
    assert resumed.outcome == reference.outcome
    assert not [path.name for path in tmp_path.rglob(".*find*")]


def test_without_exact_nothing_is_searched_again_either(runs: ModuleType, tmp_path: Path) -> None:
    make = module_class(runs, stateful=False, in_data=False, total=True)
    first = fit(runs, tmp_path, partial(make, 9), size_finder, EPOCH, exact=False)
    resumed = fit(runs, tmp_path, make, size_finder, EPOCH, seed=9, exact=False)
    assert resumed.first_step == 8
    assert set(resumed.module.sizes) == {first.module.sizes[-1]}
    assert first.module.sizes[-1] > 2


def test_a_callback_that_searches_in_its_own_epochs_does_so(
    runs: ModuleType, tmp_path: Path
) -> None:
    """As Lightning's documentation has it: a subclass that searches at some epochs."""
    from lightning.pytorch.callbacks import LearningRateFinder

    found: list[int] = []

    class AtEpochs(LearningRateFinder):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pass

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch in (0, 2):
                self.lr_find(trainer, pl_module)

        def lr_find(self, trainer: Any, pl_module: Any) -> None:
            found.append(trainer.current_epoch)

    make = module_class(runs, stateful=False, in_data=False, total=False)
    fit(runs, tmp_path, partial(make, 17), AtEpochs, EPOCH)
    assert found == [0]
    fit(runs, tmp_path, make, AtEpochs, EPOCH, seed=9)
    assert found == [0, 2]


def test_a_checkpoint_that_does_not_say_what_was_found_is_said(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first run had no callback that searches; the second does not begin to."""
    from lightning.pytorch.callbacks import Callback

    make = module_class(runs, stateful=False, in_data=False, total=False)
    fit(runs, tmp_path, partial(make, 17), Callback, EPOCH)
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        resumed = fit(runs, tmp_path, make, size_finder, EPOCH, seed=9)
    assert set(resumed.module.sizes) == {2}
    assert "does not say which batch_size was found by BatchSizeFinder" in caplog.text
