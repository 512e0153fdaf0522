"""The table of the matrix: what Lightning ships, and where a run may be killed. No torch here."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from importlib.metadata import version

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)

BOUNDARIES = ("batch", "before_validation", "after_validation", "epoch_end", "next_epoch")
"""In the middle of an epoch, around its validation, at its end, and when the next one begins."""

SAVERS = ("steps", "epochs", "best", "interval")

CALLBACKS = (
    "none",
    "BackboneFinetuning",
    "BaseFinetuning",
    "BatchSizeFinder",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "EarlyStopping-train",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint-second",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
)

_SCHEDULERS = (
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau-loss",
    "ReduceLROnPlateau-val",
    "SequentialLR",
    "StepLR",
)
SCHEDULERS = (
    "none",
    *(f"{name}/{interval}" for name in _SCHEDULERS for interval in ("epoch", "step")),
    "StepLR/epoch/2",
    "StepLR/step/3",
    "ReduceLROnPlateau-val/epoch/2",
    "ReduceLROnPlateau-loss/step/2",
)

TOLD = {"ModelPruning": "ModelPruning saves neither its masks"}
"""Callbacks and options with which not every resume is exact, and what it says then."""

OPTIONS = (
    "plain",
    "accumulate_grad_batches=2",
    "accumulate_grad_batches=4",
    "check_val_every_n_epoch=2",
    "check_val_every_n_epoch=None",
    "combined_loaders",
    "combined_loaders-min_size",
    "detect_anomaly",
    "gradient_clip_val",
    "gradient_clip_val-value",
    "lbfgs",
    "limit_train_batches=0.5",
    "limit_train_batches=3",
    "limit_val_batches=0",
    "limit_val_batches=1",
    "log_every_n_steps=4",
    "manual_optimization",
    "max_steps",
    "max_time",
    "min_epochs",
    "module_logs",
    "num_sanity_val_steps=0",
    "overfit_batches=2",
    "precision=16-mixed",
    "precision=64-true",
    "precision=bf16-mixed",
    "precision=bf16-true",
    "profiler",
    "reload_dataloaders_every_n_epochs",
    "reload_dataloaders_every_n_epochs=2",
    "two_validation_loaders",
    "use_distributed_sampler=False",
    "val_check_interval=0.5",
    "val_check_interval=2",
    "val_check_interval=3",
)


@dataclass(frozen=True)
class Combination:
    """One training, killed twice at one kind of boundary."""

    boundary: str
    saver: str = "steps"
    callback: str = "none"
    scheduler: str = "StepLR/epoch"
    option: str = "plain"

    def __str__(self) -> str:
        parts = (self.callback, self.scheduler, self.option, self.saver, self.boundary)
        return "-".join(part.replace("/", "_") for part in parts)


def whole() -> list[Combination]:
    """Each callback, scheduler, option and saver at each boundary, and pairs of all kinds."""
    found = [
        *(Combination(b, callback=c) for c in CALLBACKS for b in BOUNDARIES),
        *(Combination(b, scheduler=s) for s in SCHEDULERS for b in BOUNDARIES),
        *(Combination(b, option=o) for o in OPTIONS for b in BOUNDARIES),
        *(Combination(b, saver=s) for s in SAVERS for b in BOUNDARIES),
    ]
    draw = random.Random(19)
    pairs = [
        *itertools.product(CALLBACKS, SCHEDULERS, ["plain"]),
        *itertools.product(CALLBACKS, ["StepLR/epoch"], OPTIONS),
        *itertools.product(["none"], SCHEDULERS, OPTIONS),
    ]
    for callback, scheduler, option in draw.sample(pairs, PAIRS):
        boundary, saver = draw.choice(BOUNDARIES), draw.choice(SAVERS)
        found.append(Combination(boundary, saver, callback, scheduler, option))
    return list(dict.fromkeys(each for each in found if _is_possible(each)))


PAIRS = 150
"""Of about 2,700, by one seed."""


_PER_GROUP = (
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "LambdaLR",
    "MultiplicativeLR",
    "OneCycleLR",
)
"""Schedulers that refuse a group of parameters that comes later."""
_OF_ALL_GROUPS = {
    *(f"{name}/{interval}" for name in _PER_GROUP for interval in ("epoch", "step")),
    "SequentialLR/epoch",  # by steps, its last turn comes before the unfreeze
}
_REFUSED = {
    "accumulate_grad_batches=2": {"GradientAccumulationScheduler"},
    "accumulate_grad_batches=4": {"GradientAccumulationScheduler"},
    "lbfgs": {"BackboneFinetuning", "BaseFinetuning", "CyclicLR/epoch", "CyclicLR/step"},
    "BackboneFinetuning": _OF_ALL_GROUPS,
    "BaseFinetuning": _OF_ALL_GROUPS,
    "manual_optimization": {
        "BatchSizeFinder",
        "GradientAccumulationScheduler",
        "LearningRateFinder",
        "StochasticWeightAveraging",
    },
}


def _is_possible(found: Combination) -> bool:
    """Whether Lightning and torch themselves allow it."""
    own_schedulers = found.option == "manual_optimization"
    refused = {found.callback, found.scheduler} & _REFUSED.get(found.option, set())
    late = found.scheduler in _REFUSED.get(found.callback, ())
    return not (refused or late) and (not own_schedulers or found.scheduler == "StepLR/epoch")


def sample(count: int) -> list[Combination]:
    """Some of the whole, by one seed: what CI runs."""
    return random.Random(7).sample(whole(), count)
