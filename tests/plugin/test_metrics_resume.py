"""What is logged after a resume is what the uninterrupted run logs, whatever it was made of."""

from __future__ import annotations

import json
import signal
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 resumes inside an epoch in another way"
)
EPOCH = {"every_n_epochs": 1, "save_top_k": -1}
MID = {"every_n_train_steps": 3, "save_top_k": -1}
STATEFUL = {"stateful": True}


def lines(runs: ModuleType, measured: ModuleType, root: Path, stops: Any, **options: Any) -> Any:
    """Interrupt at each of `stops`; what the loggers of all runs were given, the last one last."""
    found: list[Any] = []
    make = options.pop("make", measured.Measured)
    for number, stop_at in enumerate((*stops, None)):
        kept = measured.KeptLogs()
        made = partial(make, stop_at)
        run = runs.fit(
            root,
            make=made,
            seed=1 + number,
            logger=kept,
            loader_options=STATEFUL,
            **options,
        )
        assert run.stopped == (stop_at is not None)
        assert number == 0 or run.first_step > 0, "it did not resume"
        found.append(kept.lines)
    return run, found


@needs_26
@pytest.mark.parametrize(
    ("save", "stops", "options"),
    [
        pytest.param(MID, (7, 14, 20), {}, id="inside"),
        pytest.param(MID, (5, 7, 20), {"val_check_interval": 4}, id="validation-inside"),
        pytest.param({**MID, "every_n_train_steps": 1}, (1, 2, 9), {}, id="first-batches"),
        pytest.param(EPOCH, (9, 17), {}, id="epoch"),
        pytest.param(
            MID, (4, 7), {"accumulate_grad_batches": 2, "val_check_interval": 4}, id="accumulation"
        ),
    ],
)
def test_every_line_that_a_logger_gets_after_a_resume_is_that_of_the_uninterrupted_run(
    runs: ModuleType, measured: ModuleType, tmp_path: Path, save: Any, stops: Any, options: Any
) -> None:
    """Means, sums and extremes of an epoch, and metric objects: lists, groups, wrappers, bests."""
    whole, (wanted,) = lines(runs, measured, tmp_path / "whole", (), save=save, **options)
    resumed, parts = lines(runs, measured, tmp_path / "run", stops, save=save, **options)
    assert resumed.outcome == whole.outcome
    assert sum("loss_mean_epoch" in line for line in wanted) == 3
    for part in parts:
        for line, values in part.items():
            assert values == wanted[line], line
    assert set().union(*parts) == set(wanted)
    assert resumed.trainer.callback_metrics == whole.trainer.callback_metrics


def test_a_run_that_resumes_at_its_end_has_the_metrics_of_its_last_checkpoint(
    runs: ModuleType, tmp_path: Path
) -> None:
    """A loop over trials reads them after each `fit`, also of the ones that are done."""
    first = runs.fit(tmp_path, save=EPOCH)
    wanted = dict(first.trainer.callback_metrics)
    assert set(wanted) == {"loss", "val"}
    again = runs.fit(tmp_path, save=EPOCH)
    assert again.module.steps == []
    assert dict(again.trainer.callback_metrics) == wanted


@needs_26
def test_a_monitored_save_goes_on_in_a_run_that_is_killed_more_often_than_it_validates(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """A validation every 16 batches, an end every 3 steps, a save every 2."""
    save = {"every_n_train_steps": 2, "monitor": "val", "save_top_k": -1}
    options = {"save": save, "check_val_every_n_epoch": 2, "max_epochs": 4}
    runs.fit(tmp_path / "whole", **options)
    begun = -1
    for number, stop_at in enumerate((19, 21, 23, 25, 27, 29, 31, None)):
        make = partial(runs.Net, stop_at)  # nothing is saved before there is a metric
        run = runs.fit(tmp_path / "run", seed=1 + number, make=make, **options)
        assert run.first_step > begun, "no progress"
        begun = run.first_step
    assert not run.stopped
    assert names(tmp_path / "run") == names(tmp_path / "whole")


def test_early_stopping_at_an_epoch_end_finds_the_metric_of_an_earlier_validation(
    runs: ModuleType, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import EarlyStopping

    def fit(root: Path, **options: Any) -> Any:
        stopping = EarlyStopping("val", check_on_train_epoch_end=True, patience=9)
        save = {**EPOCH, "save_on_train_epoch_end": True}
        return runs.fit(
            root, stopping, save=save, check_val_every_n_epoch=2, max_epochs=5, **options
        )

    class ValidatedFirst(runs.Net):
        def on_fit_start(self) -> None:
            if not self.trainer.ckpt_path:
                self.trainer.callback_metrics["val"] = torch.tensor(7.0)

    def make(stop_at: int | None = None) -> Any:
        return ValidatedFirst(stop_at)

    whole = fit(tmp_path / "whole", make=make, num_sanity_val_steps=0)
    fit(tmp_path / "run", make=partial(make, 20), num_sanity_val_steps=0)
    resumed = fit(tmp_path / "run", make=make, seed=2)
    assert resumed.first_step == 16
    assert resumed.outcome == whole.outcome


@needs_26
@pytest.mark.parametrize("stops", [(7,), (9, 13), (15,)])
def test_gradient_accumulation_goes_on_as_its_scheduler_set_it(
    runs: ModuleType, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """8 steps in epoch 0, then 4, then 2: no hook of the epoch's start runs inside of one."""
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    options = {"save": {**MID, "every_n_train_steps": 1}, "loader_options": STATEFUL}
    options["max_epochs"] = 4

    def scheduler() -> Any:
        return GradientAccumulationScheduler({1: 2, 2: 4})

    whole = runs.fit(tmp_path / "whole", scheduler(), **options)
    for stop_at in stops:
        runs.fit(tmp_path / "run", scheduler(), make=partial(runs.Net, stop_at), **options)
    resumed = runs.fit(tmp_path / "run", scheduler(), seed=9, **options)
    assert resumed.first_step == stops[-1]
    assert whole.trainer.global_step == 8 + 4 + 2 + 2
    assert resumed.outcome == whole.outcome


def test_another_accumulation_of_the_trainer_holds_from_the_resume_on(
    runs: ModuleType, tmp_path: Path
) -> None:
    """What the arguments say is no state of the run."""
    options = {"save": {**MID, "every_n_train_steps": 1}, "loader_options": {}}
    runs.fit(tmp_path, make=partial(runs.Net, 3), accumulate_grad_batches=2, **options)
    resumed = runs.fit(tmp_path, accumulate_grad_batches=4, **options)
    assert resumed.trainer.accumulate_grad_batches == 4


RANKS = """
import json, signal, sys
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
from torchmetrics import CatMetric, MeanMetric
import metric_runs, plugin_runs as runs
from bt_lightning import BTLightning


class Net(runs.Net):
    def __init__(self, *args):
        super().__init__(*args)
        self.mean, self.all = MeanMetric(), CatMetric()

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.mean.update(loss.detach() + self.global_rank)
        self.all.update(torch.full((500_000,), float(index + self.global_rank)))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("synced", loss + self.global_rank, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        self.log("all", self.all.compute().sum())
        self.all.reset()


def fit(root, stop_at, seed):
    L.seed_everything(seed)
    bt, kept = BTLightning(dir=root), metric_runs.KeptLogs()
    trainer = runs.trainer(
        root,
        bt,
        ModelCheckpoint(save_top_k=-1, every_n_train_steps=5),
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,
        max_epochs=1,
        logger=kept,
    )
    rows = runs.Numbers(length=64)
    sampler = StatefulDistributedSampler(rows, 2, trainer.global_rank, shuffle=True, seed=5)

    def end():
        if not trainer.is_global_zero:
            signal.pause()
        bt._session.writer.saves.saver.drain()
        runs.kill_group()

    module = Net(stop_at, end)
    trainer.fit(module, StatefulDataLoader(rows, batch_size=4, sampler=sampler))
    if trainer.is_global_zero:
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "loss"}
        print(json.dumps({"first": module.steps[0], **found}), flush=True)


for name, stop_at, seed in json.loads(sys.argv[2]):
    fit(sys.argv[1] + name, stop_at, seed)
"""


@needs_26
@pytest.mark.timeout(300)  # two starts of two ranks that each import torch and Lightning
def test_each_of_two_ranks_gets_its_own_part_of_the_metrics_back(
    scripts: Any, measured: Any, tmp_path: Path
) -> None:
    """The states of a rank exceed what torch's key-value store takes as one value."""
    jobs = [("/whole", None, 1), ("/run", 7, 1)]
    done = scripts.run(RANKS, tmp_path, json.dumps(jobs), code=-signal.SIGKILL)
    (wanted,) = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    done = scripts.run(RANKS, tmp_path, json.dumps([("/run", None, 9)]), code=0)
    (resumed,) = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    assert resumed.pop("first") == 5
    assert wanted.pop("first") == 0
    assert resumed == wanted


@needs_26
def test_a_script_that_logs_in_another_way_than_before_resumes(
    runs: ModuleType, measured: ModuleType, tmp_path: Path
) -> None:
    """A name in the progress bar, another reduction, a metric instead of a mean, one less."""

    class Changed(measured.Measured):
        def log(self, name: str, value: Any, **how: Any) -> None:
            if name == "loss_mean":
                how["prog_bar"] = True
            if name == "loss_sum":
                how["reduce_fx"] = "max"
            if name == "second":
                value = self.seen
            if name != "recent":
                super().log(name, value, **how)

    runs.fit(
        tmp_path,
        make=partial(measured.Measured, 7),
        save=MID,
        loader_options=STATEFUL,
        max_epochs=1,
    )
    run = runs.fit(tmp_path, make=Changed, save=MID, loader_options=STATEFUL, max_epochs=1)
    assert run.first_step == 6
    found = run.trainer.callback_metrics
    assert found["loss_sum"] < found["loss_max"], "the maximum of what came after the resume"
    assert found["loss_min"] < found["loss_mean_epoch"] < found["loss_max"]


@needs_26
def test_states_that_are_too_large_are_told_of_at_the_save_and_at_the_resume(
    runs: ModuleType,
    measured: ModuleType,
    tmp_path: Path,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list of all predictions is left out, the counts are kept."""
    from bt_lightning.lightning_plugin import metrics_in_saves

    options = {"save": MID, "loader_options": STATEFUL, "max_epochs": 1}
    whole = runs.fit(tmp_path / "whole", make=measured.Measured, **options)
    monkeypatch.setattr(metrics_in_saves, "MOST_BYTES", 200)
    with pytest.warns(UserWarning, match=r"of auroc have 144 bytes and are not saved"):
        runs.fit(tmp_path / "run", make=partial(measured.Measured, 7), **options)
    with caplog.at_level("WARNING"):
        resumed = runs.fit(tmp_path / "run", make=measured.Measured, **options)
    assert (
        "begin anew in this epoch, as their states were too large to be saved: auroc" in caplog.text
    )
    found, wanted = resumed.trainer.callback_metrics, whole.trainer.callback_metrics
    different = {name for name in found if found[name] != wanted[name]}
    assert different <= {"auroc"}


def test_tensors_are_packed_into_few_and_come_back_as_they_were() -> None:
    from bt_lightning.lightning_plugin.packed_tensors import pack, unpack

    value = {
        "many": [torch.arange(n, dtype=torch.float32).reshape(n, 1) for n in range(300)],
        "mixed": [torch.ones(2), torch.ones(2, dtype=torch.int64), 3, "x", None],
        "nested": {"scalar": torch.tensor(2.5, dtype=torch.float64), "empty": []},
        "none": torch.ones(0, 4),
    }
    packed = pack(value)
    assert len(packed["flat"]) == 3
    found = unpack(packed)
    assert str(found) == str(value)
    assert [t.dtype for t in found["mixed"][:2]] == [torch.float32, torch.int64]
