"""A killed run reloads its dataloaders when a whole one does, and draws the same from them."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from tests.exact.matrix_table import OLD

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("given", "given_own_generator", "hook", "hook_own_generator", "hook_draws")
SAVE = {"every_n_train_steps": 1, "save_top_k": -1}
EPOCH = 4
"""Batches of an epoch."""


class Data(L.LightningDataModule):
    """Loaders made anew by hooks, in the way of `kind`."""

    def __init__(self, runs: Any, kind: str) -> None:
        super().__init__()
        self.runs, self.kind = runs, kind

    def rows(self, batches: int) -> Any:
        rows = self.runs.Numbers(length=4 * batches)
        draws = self.kind == "hook_draws"
        return Subset(rows, torch.randperm(len(rows)).tolist()) if draws else rows

    def train_dataloader(self) -> Any:
        own = self.kind.endswith("own_generator")
        generator = torch.Generator().manual_seed(3) if own else None
        return DataLoader(self.rows(EPOCH), 4, shuffle=True, generator=generator)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows(2), 4)


@pytest.fixture
def fit(runs: Any) -> Any:
    return partial(_fit, runs)


def _fit(runs: Any, root: Path, kind: str, period: int, stop_at: int | None = None) -> Any:
    L.seed_everything(1)
    bt = runs.BTLightning(dir=root)
    options = {"reload_dataloaders_every_n_epochs": period}
    trainer = runs.trainer(root, bt, runs.ModelCheckpoint(**SAVE), **options)
    run = runs.Run(trainer, runs.Net(stop_at))
    own = torch.Generator().manual_seed(3) if kind == "given_own_generator" else None
    rows = runs.Numbers(length=4 * EPOCH)
    given = (
        {"train_dataloaders": DataLoader(rows, 4, shuffle=True, generator=own)}
        if kind.startswith("given")
        else {"datamodule": Data(runs, kind)}
    )
    try:
        trainer.fit(run.module, **given)
    except runs.StoppedError:
        return run
    run.outcome = runs.outcome(trainer)
    return run


@pytest.mark.parametrize(
    ("kind", "period"),
    [
        *itertools.product(KINDS, (1, 2)),
        ("given_own_generator", 0),
    ],
)
def test_a_run_that_is_killed_thrice_ends_as_a_whole_one(
    fit: Any, tmp_path: Path, kind: str, period: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed at the ends of two epochs, behind which Lightning reloads or not, and inside one."""
    wanted = fit(tmp_path / "whole", kind, period).outcome
    ends = [EPOCH, 2 * EPOCH] if OLD else [EPOCH, 2 * EPOCH, 2 * EPOCH + 2]
    for start, stop_at in itertools.pairwise([0, *ends, None]):
        found = fit(tmp_path / "killed", kind, period, stop_at)
        assert found.first_step == start
    assert found.outcome == wanted
    assert "not exact" not in caplog.text
