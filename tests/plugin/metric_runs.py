"""A training that logs in every way, and a logger that keeps what it was given."""

from __future__ import annotations

from typing import Any

import plugin_runs as runs
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torchmetrics import MaxMetric, MeanMetric, MeanSquaredError, MetricCollection, MinMaxMetric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryPrecision,
    BinaryRecall,
)
from torchmetrics.wrappers import MetricTracker, Running


class KeptLogs(DummyLogger):
    """Keeps each line by its step and its names."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        own = {name: value for name, value in metrics.items() if "checkpoint/" not in name}
        if own:
            self.lines[(step, *sorted(own))] = own

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    def __getitem__(self, index: int) -> KeptLogs:
        return self


class Measured(runs.Net):
    """Logs sums, means and bests over the epoch, and metric objects of every kind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.error = MeanSquaredError()
        self.auroc = BinaryAUROC()  # a list of all predictions
        self.group = MetricCollection(
            [BinaryAccuracy(), BinaryPrecision(), BinaryRecall()], prefix="train_"
        )
        self.extremes = MinMaxMetric(MeanMetric())
        self.recent = Running(MeanMetric(), window=3)
        self.val_error = MeanSquaredError()
        self.best = MaxMetric()  # over all epochs: nobody resets it
        self.tracker = MetricTracker(MeanMetric(), maximize=True)
        self.seen = MeanMetric()  # never logged as an object

    def on_train_start(self) -> None:
        """As templates do, since the sanity check has updated some."""
        self.best.reset()
        self.val_error.reset()

    def on_train_epoch_start(self) -> None:
        self.tracker.increment()
        self.log("begun", float(self.current_epoch) + 0.5)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        found = torch.sigmoid(self.net(batch)).flatten().detach()
        truth = torch.randint(0, 2, found.shape)
        self.error(found, truth.float())
        self.auroc.update(found, truth)
        self.group.update(found, truth)
        self.extremes(loss.detach())
        self.recent(loss.detach())
        self.tracker.update(loss.detach())
        self.seen.update(loss.detach())
        self.log("error", self.error, on_step=True, on_epoch=True)
        self.log("auroc", self.auroc, on_step=False, on_epoch=True)
        self.log_dict(self.group, on_step=False, on_epoch=True)
        self.log("recent", self.recent, on_step=True, on_epoch=False)
        for how in ("mean", "sum", "min", "max"):
            self.log(f"loss_{how}", loss, on_step=how == "mean", on_epoch=True, reduce_fx=how)
        if index == 1:
            self.log("second", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        super().validation_step(batch, index)
        self.val_error(self.net(batch).flatten(), batch.mean(1))
        self.log("val_error", self.val_error)

    def on_validation_epoch_end(self) -> None:
        self.best.update(self.val_error.compute())
        self.log("best", self.best.compute())

    def on_train_epoch_end(self) -> None:
        worst = self.extremes.compute()
        self.log("seen", self.seen.compute())
        self.log("extreme", worst["max"])
        self.log("tracked", sum(self.tracker.compute_all()))
