"""Averaged weights, and their schedule, are in a resumed run those of the uninterrupted one."""

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
    OLD,
    reason="Lightning before 2.6 has no WeightAveraging, and starts an epoch again that is resumed"
    " in its middle",
)

EPOCH = {"every_n_epochs": 1}
TRAIN_END = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
MID = {"every_n_train_steps": 3}


def plain(runs: ModuleType) -> Any:
    """Without normalisation, whose statistics need an epoch of their own."""
    import torch

    class Plain(runs.Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1)
            )

    return Plain


def swa(start: float, **options: Any) -> Any:
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    return StochasticWeightAveraging(1e-3, start, annealing_epochs=2, **options)


def ema() -> Any:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    return EMAWeightAveraging(decay=0.9)


def by_epochs() -> Any:
    from lightning.pytorch.callbacks import WeightAveraging

    class ByEpochs(WeightAveraging):
        def should_update(self, step_idx: Any = None, epoch_idx: Any = None) -> bool:
            return epoch_idx is not None

    return ByEpochs()


def case(name: str, make: Any, save: dict[str, Any], *stops: int, **options: Any) -> Any:
    norm, new = options.pop("norm", False), options.pop("new", False)
    mid = any(stop % 8 > 1 for stop in stops)
    what = (make, norm, save, stops, {"stateful": True} if mid else {}, options)
    return pytest.param(what, id=name, marks=(needs_26,) if mid or new else ())


CASES = [
    case("swa-before", partial(swa, 3), EPOCH, 9, max_epochs=4),
    case("swa-before-middle", partial(swa, 4), MID, 5, 14, max_epochs=4),
    case("swa-fraction", partial(swa, 0.75), TRAIN_END, 9, 17, max_epochs=4),
    case("swa-in", partial(swa, 2), EPOCH, 17, 25, max_epochs=4),
    case("swa-in-middle", partial(swa, 2), MID, 14, 22, 29, max_epochs=4),
    case("swa-in-linear", partial(swa, 2, annealing_strategy="linear"), MID, 13, 20, max_epochs=4),
    case("swa-norm-middle", partial(swa, 2), MID, 14, 22, max_epochs=4, norm=True),
    case("ema", ema, EPOCH, 9, 17, norm=True, new=True),
    case("ema-middle", ema, MID, 7, 14, 20, norm=True),
    case("ema-validated", ema, {"every_n_train_steps": 4}, 6, 14, norm=True, val_check_interval=4),
    case("by_epochs", by_epochs, TRAIN_END, 9, 17, norm=True, new=True),
]


@pytest.mark.parametrize("what", CASES)
def test_averaging_goes_on(runs: ModuleType, tmp_path: Path, what: Any) -> None:
    callback, norm, save, stops, loader, options = what
    make = runs.Net if norm else plain(runs)
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader, **options}
    reference = runs.fit(tmp_path / "reference", callback(), make=make, **options)
    for number, stop in enumerate(stops):
        seed, module = 1 + 100 * number, partial(make, stop)
        assert runs.fit(tmp_path / "run", callback(), seed=seed, make=module, **options).stopped
    resumed = runs.fit(tmp_path / "run", callback(), seed=99, make=make, **options)
    assert 0 < resumed.first_step <= stops[-1]
    assert resumed.outcome == reference.outcome


def test_the_epoch_that_computes_statistics_is_resumed(runs: ModuleType, tmp_path: Path) -> None:
    """Averaging is over at its start; no scheduler is taken up again, as nothing learns in it."""
    options = {"save": {"save_top_k": -1, **EPOCH}, "max_epochs": 4}
    reference = runs.fit(tmp_path / "reference", swa(2), **options)
    assert runs.fit(tmp_path / "run", swa(2), make=partial(runs.Net, 32), **options).stopped
    resumed = runs.fit(tmp_path / "run", swa(2), seed=99, **options)
    assert resumed.first_step == 32
    for part in ("weights", "optimizers", "step", "epoch"):
        assert resumed.outcome[part] == reference.outcome[part]


@pytest.mark.parametrize(
    ("callback", "norm"),
    [
        pytest.param(partial(swa, 2), False, id="swa"),
        pytest.param(partial(swa, 2), True, id="swa-norm"),
        pytest.param(ema, True, id="ema", marks=needs_26),
    ],
)
def test_a_finished_run_that_is_started_again_has_the_averaged_weights(
    runs: ModuleType, tmp_path: Path, callback: Any, norm: bool
) -> None:
    """They are given to the module behind the last save, in a hook that is not called again."""
    make = runs.Net if norm else plain(runs)
    bt = {"fit_name": "averaged"}  # both are the same fit, though one process makes them
    options = {"make": make, "save": {"save_top_k": -1, **TRAIN_END}, "bt": bt}
    first = runs.fit(tmp_path, callback(), **options)
    again = runs.fit(tmp_path, callback(), **options)
    assert again.module.steps == []
    assert again.outcome["weights"] == first.outcome["weights"]
