"""Metrics that a module puts into its checkpoints itself, as pytorch-forecasting does its loss."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 is not exact inside an epoch")


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize("stop_at", [pytest.param(13, marks=needs_26), 16])
def test_metrics_in_a_state_come_back_without_pickle_and_with_what_they_counted(
    runs: ModuleType, tmp_path: Path, stop_at: int
) -> None:
    """Two are equal but for what they counted, and stay two."""
    from torchmetrics import MaxMetric, MeanMetric

    class Special(runs.Net):
        def __init__(self, stop_at: int | None = None) -> None:
            super().__init__(stop_at)
            self.special = ("one", "other", "several")
            self.one, self.other = MeanMetric(), MeanMetric()
            self.several = torch.nn.ModuleList([MeanMetric(), MaxMetric()])

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            self.one.update(loss)  # with its graph
            self.other.update(-loss.detach())
            for metric in self.several:
                metric.update(batch.mean())
            return loss

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["special"] = {name: getattr(self, name) for name in self.special}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            for name, value in checkpoint["special"].items():
                setattr(self, name, value)

        def counted(self) -> list[float]:
            metrics = [self.one, self.other, *self.several]
            return [float(metric.compute()) for metric in metrics]

    whole = runs.fit(tmp_path / "whole", make=Special)
    assert runs.fit(tmp_path / "two", make=lambda: Special(stop_at)).stopped
    rest = runs.fit(tmp_path / "two", make=Special)
    assert rest.first_step == stop_at
    assert rest.outcome == whole.outcome
    assert rest.module.one is not rest.module.other
    assert rest.module.counted() == whole.module.counted()
