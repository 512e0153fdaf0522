"""Private names of Lightning for the row of metrics that a checkpoint's moment has still to log.

Lightning logs the metrics of a batch, and of an epoch, behind all hooks, and so behind the saves of
that boundary. A run that resumes does not log them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.lightning_plugin.compat import is_behind_batch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class OwedRow:
    """One row of metrics, as Lightning would have logged it."""

    metrics: dict[str, Any]
    """Tensors of one value, numbers, or dictionaries of them."""
    step: int
    epoch: int

    def to_state(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {"metrics": self.metrics, "step": self.step, "epoch": self.epoch}

    @classmethod
    def of_state(cls, state: Any) -> OwedRow | None:
        """The row of `to_state`."""
        return None if state is None else cls(dict(state["metrics"]), state["step"], state["epoch"])


def owed_row(trainer: Trainer) -> OwedRow | None:
    """Every rank, while a checkpoint is made: the row that Lightning logs next, if it is due.

    The values are those that Lightning itself computes at this boundary, and keeps. Source:
    `_TrainingEpochLoop.advance`, `_FitLoop.on_advance_end`, `_LoggerConnector.log_metrics`.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop
    step, epoch = loop.epoch_loop._batches_that_stepped, trainer.current_epoch
    if trainer.sanity_checking or trainer._results is None:
        return None
    if not trainer.training:
        return None  # a validation logs before it saves
    if is_behind_batch(trainer):
        accumulates = loop._should_accumulate() and trainer.lightning_module.automatic_optimization
        if accumulates or not connector.should_update_logs:
            return None
    elif _is_behind_epoch(trainer):
        step -= 1
    else:
        return None
    metrics: Any = connector.metrics["log"]
    return OwedRow(dict(metrics), step, epoch) if metrics else None


def _is_behind_epoch(trainer: Trainer) -> bool:
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return bool(epoch.completed < epoch.processed)


def log_owed(loggers: Iterable[Any], row: OwedRow) -> None:
    """Log a row as Lightning does. Source: `_LoggerConnector.log_metrics`."""
    metrics = {name: _scalar(value) for name, value in row.metrics.items()}
    step = metrics.pop("step", None)
    if step is None:
        metrics.setdefault("epoch", row.epoch)
        step = row.step
    for logger in loggers:
        logger.log_metrics(metrics=dict(metrics), step=int(step))
        logger.save()


def _scalar(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return {k: _scalar(v) for k, v in value.items()} if isinstance(value, dict) else value
