"""Makes the trainings of the matrix, kills them, and says where they ended, part by part."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
import metric_runs
import plugin_runs as runs
import torch
from lightning.pytorch import callbacks as shipped
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from bt_lightning import BTLightning
from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.session.fit_selection import process_fits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BATCHES, EPOCHS = 4, 4


class KilledError(CheckpointError):
    """Ends a training as a kill does: nothing is saved because of it."""

    def __init__(self) -> None:
        super().__init__("killed")


class Kill(Checkpoint):
    """The last of all callbacks; ends the run at a boundary of one epoch."""

    def __init__(self, boundary: str, epoch: int) -> None:
        self.boundary, self.epoch = boundary, epoch

    def _at(self, trainer: L.Trainer, *boundaries: str) -> None:
        here = self.boundary in boundaries and trainer.current_epoch == self.epoch
        if here and not trainer.sanity_checking:
            self._kill(trainer)

    def _kill(self, trainer: L.Trainer) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, shipped.OnExceptionCheckpoint):
                callback.on_exception = lambda *_: None  # a kill is none
        raise KilledError

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == 2:
            self._at(trainer, "batch")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._at(trainer, "before_validation")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._at(trainer, "after_validation")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._at(trainer, "epoch_end")

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch + 1 and self.boundary == "next_epoch":
            self._kill(trainer)


class Net(runs.Net):
    """With a backbone, a scheduler by name, and sums over the epoch."""

    scheduler = "StepLR/epoch"

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.backbone, self.head = self.net[0], self.net[3]

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if isinstance(batch, dict):
            batch = torch.cat(list(batch.values()))
        loss = super().training_step(batch, index)
        self.log("mean", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        found = self.net(batch).mean()
        self.log("val", found, add_dataloader_idx=False) if dataloader_idx == 0 else None

    def optimizer(self) -> torch.optim.Optimizer:
        trained = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.SGD(trained, lr=1e-2, momentum=0.9)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        name, *how = self.scheduler.split("/")
        if name == "none":
            return optimizer
        found: dict[str, Any] = {"scheduler": make_scheduler(name, optimizer), "interval": how[0]}
        if len(how) > 1:
            found["frequency"] = int(how[1])
        if "-" in name:
            found["monitor"] = name.partition("-")[2]
            found["strict"] = False
        return {"optimizer": optimizer, "lr_scheduler": found}


class Lbfgs(Net):
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=1e-2, max_iter=3)


class Manual(runs.TwoOptimizers):
    batch_size = 4


class Hooked(Net, metric_runs.Measured):
    """Logs in every way; see `Measured`."""

    def __init__(self) -> None:
        metric_runs.Measured.__init__(self)
        self.batch_size = 4
        self.backbone, self.head = self.net[0], self.net[3]

    training_step = metric_runs.Measured.training_step
    validation_step = metric_runs.Measured.validation_step


def make_scheduler(name: str, optimizer: Any) -> Any:
    kind = name.partition("-")[0]
    module, o = lr_scheduler, optimizer
    one, two = module.StepLR(optimizer, 2, 0.7), module.ExponentialLR(optimizer, 0.95)
    steps = BATCHES * EPOCHS
    made = {
        "ChainedScheduler": lambda: module.ChainedScheduler([one, two]),
        "ConstantLR": lambda: module.ConstantLR(o, 0.5, 3),
        "CosineAnnealingLR": lambda: module.CosineAnnealingLR(o, 7),
        "CosineAnnealingWarmRestarts": lambda: module.CosineAnnealingWarmRestarts(o, 3),
        "CyclicLR": lambda: module.CyclicLR(o, 1e-3, 1e-2, step_size_up=3),
        "LambdaLR": lambda: module.LambdaLR(o, lambda n: 0.9**n),
        "LinearLR": lambda: module.LinearLR(o, 0.3, total_iters=5),
        "MultiStepLR": lambda: module.MultiStepLR(o, [1, 3, 9], 0.5),
        "MultiplicativeLR": lambda: module.MultiplicativeLR(o, lambda n: 0.95),
        "OneCycleLR": lambda: module.OneCycleLR(o, 0.05, total_steps=steps + 1),
        "PolynomialLR": lambda: module.PolynomialLR(o, 6, 2),
        "ReduceLROnPlateau": lambda: module.ReduceLROnPlateau(
            o, factor=0.5, patience=0, threshold=10.0
        ),
        "SequentialLR": lambda: module.SequentialLR(o, [one, two], [3]),
        "StepLR": lambda: one,
        "ExponentialLR": lambda: two,
    }
    return made[kind]()


accumulation = shipped.GradientAccumulationScheduler


class Freezing(shipped.BaseFinetuning):
    """A user's own: it unfreezes the head's bias in epoch 2."""

    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.head)

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(module.head, optimizer, lr=3e-3)


def is_shipped(name: str) -> bool:
    kind = name.partition("-")[0]
    return kind in ("none", "SpikeDetection") or hasattr(shipped, kind)


def make_callback(name: str, root: Path) -> list[Any]:
    kind, _, variant = name.partition("-")
    made = {
        "none": list,
        "BackboneFinetuning": lambda: shipped.BackboneFinetuning(
            unfreeze_backbone_at_epoch=2, lambda_func=lambda _: 1.5, backbone_initial_ratio_lr=0.1
        ),
        "BaseFinetuning": Freezing,
        "BatchSizeFinder": lambda: shipped.BatchSizeFinder(
            "power", steps_per_trial=1, init_val=2, max_trials=1
        ),
        "DeviceStatsMonitor": lambda: shipped.DeviceStatsMonitor(cpu_stats=False),
        "EMAWeightAveraging": lambda: shipped.EMAWeightAveraging(decay=0.8),
        "EarlyStopping": lambda: shipped.EarlyStopping(
            *(("mean",) if variant else ("val",)),
            min_delta=10.0,
            patience=2,
            check_on_train_epoch_end=bool(variant),
            strict=False,
        ),
        "GradientAccumulationScheduler": lambda: accumulation({1: 2, 2: 3}),
        "LambdaCallback": lambda: shipped.LambdaCallback(
            on_train_batch_end=lambda trainer, module, *_: module.log("lambda", 1.0)
        ),
        "LearningRateFinder": lambda: shipped.LearningRateFinder(num_training_steps=5),
        "LearningRateMonitor": lambda: shipped.LearningRateMonitor(log_momentum=True),
        "ModelCheckpoint": lambda: ModelCheckpoint(
            dirpath=root / "second", monitor="val", save_top_k=2, every_n_epochs=1, save_last=True
        ),
        "ModelPruning": lambda: shipped.ModelPruning(
            "l1_unstructured", amount=0.1, parameter_names=["weight"], verbose=0
        ),
        "ModelSummary": lambda: shipped.ModelSummary(max_depth=1),
        "OnExceptionCheckpoint": lambda: shipped.OnExceptionCheckpoint(root / "exception"),
        "RichModelSummary": lambda: shipped.RichModelSummary(max_depth=1),
        "RichProgressBar": shipped.RichProgressBar,
        "SpikeDetection": lambda: spike_detection(root),
        "StochasticWeightAveraging": lambda: shipped.StochasticWeightAveraging(
            5e-3, swa_epoch_start=2, annealing_epochs=2
        ),
        "TQDMProgressBar": shipped.TQDMProgressBar,
        "ThroughputMonitor": lambda: shipped.ThroughputMonitor(len, window_size=2),
        "Timer": lambda: shipped.Timer(duration={"minutes": 10}),
        "WeightAveraging": lambda: shipped.WeightAveraging(),  # noqa: PLW0108 - 2.4 has none
    }
    found = made[kind]()
    return found if isinstance(found, list) else [found]


def spike_detection(root: Path) -> Any:
    from lightning.pytorch.callbacks.spike import SpikeDetection

    return SpikeDetection(window=3, exclude_batches_path=root / "skipped.json", atol=1e3)


def trainer_options(option: str) -> dict[str, Any]:
    """Arguments of the Trainer; the other options change loaders or the module."""
    name, _, value = option.partition("=")
    if value:
        return {name: value if name == "precision" else eval(value)}
    return {
        "check_val_every_n_epoch": {},
        "detect_anomaly": {"detect_anomaly": True},
        "gradient_clip_val": {"gradient_clip_val": 0.1},
        "gradient_clip_val-value": {
            "gradient_clip_val": 0.01,
            "gradient_clip_algorithm": "value",
        },
        "max_steps": {"max_steps": 20, "max_epochs": -1},
        "max_time": {"max_time": {"hours": 1}},
        "min_epochs": {"min_epochs": 3},
        "profiler": {"profiler": "simple"},
        "reload_dataloaders_every_n_epochs": {"reload_dataloaders_every_n_epochs": 1},
        "reload_dataloaders_every_n_epochs=2": {"reload_dataloaders_every_n_epochs": 2},
    }.get(option, {})


MODULES = {"lbfgs": Lbfgs, "manual_optimization": Manual, "module_logs": Hooked}


class Data(L.LightningDataModule):
    """Loaders by the option, made anew whenever Lightning asks; 2 batches of validation."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option

    def _train(self, seed: int = 0) -> Any:
        rows: Any = runs.Numbers(length=4 * BATCHES)
        if self.option.startswith("reload"):
            rows = Subset(rows, torch.randperm(len(rows)).tolist())
        size = getattr(self.trainer.lightning_module, "batch_size", 4)
        return StatefulDataLoader(rows, batch_size=size, shuffle=True)

    def train_dataloader(self) -> Any:
        if self.option.startswith("combined_loaders"):
            mode = self.option.partition("-")[2] or "max_size_cycle"
            return CombinedLoader({"a": self._train(), "b": self._train()}, mode)
        return self._train()

    def val_dataloader(self) -> Any:
        one = DataLoader(runs.Numbers(length=16), batch_size=8)
        return [one, one] if self.option == "two_validation_loaders" else one


def savers(saver: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the `ModelCheckpoint`, and of `BTLightning`."""
    return {
        "steps": ({"every_n_train_steps": 1, "save_top_k": -1}, {}),
        "epochs": ({"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}, {}),
        "best": ({"monitor": "val", "save_top_k": 2, "save_last": True}, {}),
        "interval": ({"every_n_epochs": 2, "save_top_k": -1}, {"interval": 1e-6}),
    }[saver]


@dataclass
class Found:
    """What a run left."""

    outcome: dict[str, Any]
    lines: dict[Any, Any] = field(default_factory=dict)
    began: int = 0


def once(found: Any, root: Path, seed: int, kill: Kill | None) -> Found:
    """One start of the script, killed or not, as if in a process of its own."""
    L.seed_everything(seed)
    process_fits.clear()
    kept = metric_runs.KeptLogs()
    save, bt = savers(found.saver)
    callbacks = make_callback(found.callback, root)
    last = [kill] if kill is not None else []
    options: dict[str, Any] = {
        **runs.QUIET,
        "default_root_dir": str(root),
        "max_epochs": EPOCHS,
        "logger": kept,
        "enable_progress_bar": "ProgressBar" in found.callback,
        "callbacks": [BTLightning(dir=root, **bt), *callbacks, ModelCheckpoint(**save), *last],
        **trainer_options(found.option),
    }
    if found.option == "check_val_every_n_epoch=None":
        options["val_check_interval"] = 4
    if found.option == "log_every_n_steps=4":
        options["log_every_n_steps"] = 4
    trainer = L.Trainer(**options)
    kind = type("Chosen", (MODULES.get(found.option, Net),), {"scheduler": found.scheduler})
    module = kind()
    try:
        trainer.fit(module, datamodule=Data(found.option))
    except KilledError:
        began = module.steps[0] if module.steps else 0
        return Found({}, exact_lines(kept.lines), began)
    began = module.steps[0] if module.steps else -1
    return Found(outcome(trainer, root), exact_lines(kept.lines), began)


def killed_twice(found: Any, root: Path) -> tuple[Found, list[Found]]:
    """The outcome of a run that is killed in two epochs, and the parts that it had."""
    kills = [Kill(found.boundary, 1), Kill(found.boundary, 2), None]
    parts: list[Found] = []
    for number, kill in enumerate(kills):  # from one place of the script, as a fit is told by it
        begins_again = not has_saved(root)
        parts.append(once(found, root, 1 if begins_again else 1 + number, kill))
    return parts[-1], parts


def has_saved(root: Path) -> bool:
    """Whether anything is there to resume from."""
    return bool(list_committed(root)[0])


def outcome(trainer: L.Trainer, root: Path) -> dict[str, Any]:
    """As `plugin_runs.outcome`, with all that a run leaves behind."""
    optimizers = trainer.optimizers
    loops = trainer.fit_loop.state_dict()
    loops.pop("combined_loader", None)
    module: Any = trainer.lightning_module
    return {
        **runs.outcome(trainer),
        "lr": [group["lr"] for optimizer in optimizers for group in optimizer.param_groups],
        "generator": runs.digest(torch.get_rng_state()),
        "metrics": {k: v for k, v in sorted(trainer.callback_metrics.items()) if is_exact(k)},
        "trained": [name for name, p in module.named_parameters() if p.requires_grad],
        "accumulation": trainer.accumulate_grad_batches,
        "counters": counters(loops),
        "callbacks": {
            type(callback).__name__: runs.digest(plain(callback.state_dict(), root))
            for callback in trainer.callbacks
            if type(callback).__name__ not in ("Timer", "BTLightning")
        },
        "batch_size": module.batch_size,
    }


def is_exact(name: str) -> bool:
    return not name.startswith(("device/", "train/", "validate/"))


def exact_lines(lines: Mapping[Any, dict[str, float]]) -> dict[Any, dict[str, float]]:
    """Without what is measured, by the step and the names that are left."""
    found = {}
    for (step, *names), values in lines.items():
        left = [name for name in names if is_exact(name)]
        found[(step, *left)] = {name: values[name] for name in left}
    return found


def counters(loops: dict[str, Any]) -> dict[str, Any]:
    """Those that a uninterrupted run and a resumed one both have: totals."""
    return {
        "epochs": loops["epoch_progress"]["total"],
        "batches": loops["epoch_loop.batch_progress"]["total"],
        "stepped": loops["epoch_loop.state_dict"].get("_batches_that_stepped"),
        "optimizer": loops["epoch_loop.automatic_optimization.optim_progress"],
        "schedulers": loops["epoch_loop.scheduler_progress"]["total"],
    }


def plain(state: Any, root: Path) -> Any:
    """`state` without the directory of the run."""
    if isinstance(state, dict):
        return {plain(k, root): plain(v, root) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [plain(item, root) for item in state]
    text = isinstance(state, str | os.PathLike)
    return re.sub(re.escape(str(root)), "", str(state)) if text else state
