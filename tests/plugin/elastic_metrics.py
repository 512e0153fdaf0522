"""As `elastic_runs`, with metrics of every kind of reduction; notes those of each epoch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import elastic_runs as elastic
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import (
    MaxMetric,
    MeanMetric,
    MeanSquaredError,
    MetricCollection,
    MinMetric,
    PearsonCorrCoef,
)
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryPrecision,
    BinaryRecall,
)


class Measuring(elastic.Noting):
    """Each name ends with whether its value is reduced over the ranks."""

    def __init__(self, noise: bool) -> None:
        super().__init__(noise)
        self.error = MeanSquaredError()
        self.auroc = BinaryAUROC()
        self.most, self.least = MaxMetric(), MinMetric()
        self.best = MaxMetric()  # over all epochs
        self.seen = MeanMetric()  # never logged as an object
        self.group = MetricCollection([BinaryAccuracy(), BinaryPrecision(), BinaryRecall()])
        self.pearson = PearsonCorrCoef()  # its states are merged in a way of its own

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        indices, rows = batch
        found = self.net(rows).detach().flatten()
        self.error(found, rows.sum(1))
        truth = indices % 2
        self.auroc.update(torch.sigmoid(found), truth)
        self.group.update(torch.sigmoid(found), truth)
        self.most.update(found), self.least.update(found), self.best.update(found)
        self.seen.update(found)
        self.pearson.update(found, rows.sum(1))
        for name in ("error", "auroc", "most", "least"):
            self.log(name, getattr(self, name), on_step=False, on_epoch=True)
        self.log_dict(self.group, on_step=False, on_epoch=True)
        for how in ("mean", "sum", "max", "min"):
            value = found.sum() if how == "sum" else getattr(found, how)()
            self.log(how, value, on_step=True, on_epoch=True, reduce_fx=how, sync_dist=True)
        self.log("own", found.mean(), on_step=False, on_epoch=True)
        if self.trainer.global_step % 6 == 0:  # in the part before the save only
            self.log("first", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("seen", self.seen.compute())
        self.log("best", self.best.compute())
        self.log("pearson", self.pearson.compute())
        self.seen.reset(), self.pearson.reset()

    def configure_callbacks(self) -> Any:
        return [Keeps()]


class Keeps(Callback):
    """Keeps the metrics of each epoch of training."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._keep(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._keep(trainer, module)

    def _keep(self, trainer: Any, module: Any) -> None:
        steps = ("mean_step", "sum_step", "max_step", "min_step")
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in steps}
        if "error" in found:
            module.epochs.append(found)


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        elastic.fit(each, Measuring)
