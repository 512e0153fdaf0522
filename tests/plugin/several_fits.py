"""Scripts with several fits that know nothing of bt_lightning: `several_fits.py SCRIPT`.

What each fit came to goes into `results.json`, by which some scripts skip what is done. `KILL` is
`FIT:EPOCH`: where the process kills itself, once an epoch of that fit, if it has any, is committed;
under `bt-lightning run`, the first one.
"""

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
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from plugin_runs import digest
from torch.utils.data import DataLoader, Subset, TensorDataset

RESULTS, STAGE = Path("results.json"), Path("stage1.pt")
X = torch.linspace(-1, 1, 64 * 4).reshape(64, 4)
POINTS = TensorDataset(X, X.sum(1, keepdim=True))
KILL = os.environ.get("KILL", ":") if os.environ.get("BT_RETRY_COUNT", "0") == "0" else ":"


class Net(L.LightningModule):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.rate = lr  # not the argument's name
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layer(batch[0]) - batch[1]).pow(2).mean()
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Saved(Net):
    def __init__(self, lr: float) -> None:
        super().__init__(lr)
        self.save_hyperparameters()


def committed() -> set[str]:
    """Folders of checkpoints; what is deleted meanwhile is none."""
    return {
        folder
        for folder, _, files in os.walk("ck")
        if "bt_manifest.json" in files and ".bt_lightning" not in folder
    }


class Kill(Callback):
    def __init__(self, fit: object) -> None:
        self.fit, self.before = str(fit), committed()

    def on_train_epoch_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if f"{self.fit}:{trainer.current_epoch}" == KILL:
            until = time.monotonic() + 60
            while trainer.current_epoch and not committed() - self.before:
                assert time.monotonic() < until, "nothing was committed"
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def done() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def note(fit: object, trainer: L.Trainer) -> None:
    weights = digest(trainer.lightning_module.state_dict())
    lrs = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    val = round(float(trainer.callback_metrics["val_loss"]), 6)
    found = {**done(), str(fit): [trainer.global_step, weights, lrs, val]}
    RESULTS.write_text(json.dumps(found))


def trainer(fit: object, *callbacks: Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Kill(fit), *callbacks],
        **{"max_epochs": 3, **options},
    )


def loaders(rows: Any = range(64)) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return (
        DataLoader(Subset(POINTS, list(rows)), batch_size=8, shuffle=True),
        DataLoader(POINTS, batch_size=64),
    )


def folds() -> None:
    for fold in range(4):
        if str(fold) in done():
            continue
        L.seed_everything(fold, verbose=False)
        made = trainer(fold)
        made.fit(Net(), *loaders(row for row in range(64) if row % 4 != fold))
        note(fold, made)


def stages() -> None:
    if not STAGE.exists():
        first = trainer("one")
        model = Net()
        first.fit(model, *loaders())
        note("one", first)
        torch.save(model.state_dict(), STAGE)
    if os.environ.get("BETWEEN"):
        os.kill(os.getpid(), signal.SIGKILL)
    L.seed_everything(2, verbose=False)
    second = trainer("two", max_epochs=-1, max_steps=24)
    model = Net(lr=1e-3)
    model.load_state_dict(torch.load(STAGE))
    second.fit(model, *loaders())
    note("two", second)


def search() -> None:
    for number, rate in enumerate((0.1, 0.03, 0.01)):
        if "SKIP" in os.environ and str(number) in done():
            continue
        if "SEED_ONCE" not in os.environ:
            L.seed_everything(1, verbose=False)
        made = trainer(number)
        made.fit(Saved(rate), *loaders())
        note(number, made)


def raised() -> None:
    made, model, (train, val) = trainer("all"), Net(), loaders()
    for epochs in (2, 4, 6):
        made.fit_loop.max_epochs = epochs
        made.fit(model, train, val)
        note(epochs, made)


def stopped_early() -> None:
    early = EarlyStopping("val_loss", min_delta=9.0, patience=1)
    best = ModelCheckpoint(monitor="val_loss", save_last=True)
    made = trainer("only", early, best, max_epochs=9)
    made.fit(Net(), *loaders())
    note("only", made)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    globals()[sys.argv[1]]()
