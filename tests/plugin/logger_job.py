"""A training that logs and can be killed: `logger_job.py JSON`, the arguments of `run`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import plugin_runs as runs
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from bt_lightning import BTLightning
from bt_lightning.path_layout import MANIFEST

_WAIT_S = 60.0


class Net(runs.Net):
    """Logs at every step, at epochs, with a key that comes late, and past its own hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 16})

    def training_step(self, batch: Any, index: int) -> Any:
        loss = super().training_step(batch, index)
        several = self.trainer.world_size > 1
        self.log("both", loss, on_step=True, on_epoch=True, sync_dist=several)
        if self.current_epoch == 1:
            self.log("late", loss * 2)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("after", float(self.trainer.global_step))


def wait_for(root: Path, step: int) -> None:
    """Until the checkpoint of a step is committed."""
    until = time.monotonic() + _WAIT_S
    while not (root / f"checkpoint-{step}" / MANIFEST).exists():
        assert time.monotonic() < until
        time.sleep(0.01)


class Killer(Callback):
    """Ends the process before a step, when an earlier one is saved.

    `steps`: of several starts, those at which rank 0 alone ends; the launcher counts them.
    """

    def __init__(
        self, step: int | None, saved: int | None, root: Path, steps: list[int] | None
    ) -> None:
        self._step, self._saved, self._root = step, saved, root
        self._alone = steps is not None
        if steps is not None:
            counts = ("START", "TORCHELASTIC_RESTART_COUNT")
            start = sum(int(os.environ.get(name, "0")) for name in counts)
            self._step = steps[start] if start < len(steps) else None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self._step:
            return
        if self._saved is not None:
            wait_for(self._root, self._saved)
        if not self._alone:
            runs.kill_group()
        if trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)


class Between(Logger):
    """Ends the process when a step is saved, and committed, and not yet logged."""

    name = version = "between"

    def __init__(self, step: int | None, root: Path) -> None:
        super().__init__()
        self._step, self._root = step, root

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self._step is None or step != self._step - 1 or "loss" not in metrics:
            return
        wait_for(self._root, self._step)
        os.kill(os.getpid(), signal.SIGKILL)


def make(kind: str, place: Path) -> Any:
    if kind == "csv":
        return CSVLogger(place / "csv")
    if kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(place / "tensorboard")
    if kind == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger("exp", tracking_uri=f"file:{place}/mlruns")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project="p", save_dir=place, offline=True)


def run(
    place: str,
    loggers: list[str],
    saves: dict[str, Any],
    kill: int | None = None,
    saved: int | None = None,
    steps: list[int] | None = None,
    between: int | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    warnings.filterwarnings("ignore")
    root = Path(place) / "ck"
    L.seed_everything(3, verbose=False)
    made = [make(kind, Path(place)) for kind in loggers]
    if between is not None:
        made.insert(0, Between(between, root))
    runs.trainer(
        root,
        BTLightning(dir=root, **(options or {})),
        ModelCheckpoint(save_top_k=-1, **saves),
        LearningRateMonitor("step"),
        Killer(kill, saved, root, steps),
        logger=made,
        **{"val_check_interval": 4, **more},
    ).fit(Net(), runs.loader(), runs.validation())


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
