"""A run that was interrupted and resumed ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import signal
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
OLD_REASON = (
    "Lightning before 2.6 makes the iterator of a resumed epoch twice and does not step its"
    " epoch-interval scheduler"
)
needs_26 = pytest.mark.skipif(OLD, reason=OLD_REASON)

worker_generators = pytest.mark.xfail(
    reason="torchdata gives loader workers back their seeds, not where their generators stood"
)

BATCH_LAST = {"every_n_train_steps": 8}
EPOCH = {"every_n_epochs": 1}
EPOCH_TRAIN = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
MID = {"every_n_train_steps": 3}
PLAIN: dict[str, Any] = {}
STATEFUL = {"stateful": True}


def case(
    name: str,
    save: dict[str, Any],
    loader: dict[str, Any],
    *stops: int,
    marks: tuple[Any, ...] = (),
    **options: Any,
) -> Any:
    """`stops`: optimizer steps at which the chain of runs is interrupted."""
    marks = (needs_26, *marks) if loader.get("stateful") else marks
    return pytest.param((save, loader, stops, options), id=name, marks=marks)


CASES = [
    case("save_on_last_batch-plain", BATCH_LAST, PLAIN, 9, 17),
    case("save_on_last_batch-plain-workers", BATCH_LAST, {"workers": 2}, 9, 17),
    case("save_on_last_batch-plain-no_val", BATCH_LAST, PLAIN, 9, 17, limit_val_batches=0),
    case("save_on_last_batch-stateful", BATCH_LAST, STATEFUL, 9, 17),
    case("save_on_last_batch-stateful-workers", BATCH_LAST, {**STATEFUL, "workers": 2}, 9, 17),
    case("save_on_last_batch-stateful-no_val", BATCH_LAST, STATEFUL, 9, 17, limit_val_batches=0),
    case("epoch-plain", EPOCH, PLAIN, 9, 17),
    case("epoch-plain-workers", EPOCH, {"workers": 2}, 9, 17),
    case("epoch-plain-no_val", EPOCH, PLAIN, 9, 17, limit_val_batches=0),
    case("epoch-stateful", EPOCH, STATEFUL, 9, 17),
    case(
        "epoch-stateful-workers-no_val",
        EPOCH,
        {**STATEFUL, "workers": 2},
        9,
        17,
        limit_val_batches=0,
    ),
    case("train_epoch_end-plain", EPOCH_TRAIN, PLAIN, 9, 17),
    case("train_epoch_end-stateful-workers", EPOCH_TRAIN, {**STATEFUL, "workers": 2}, 9, 17),
    case("middle-plain", MID, PLAIN, 7, 14, 20, marks=(needs_26,)),
    case("middle-plain-workers", MID, {"workers": 2}, 7, 14, 20, marks=(needs_26,)),
    case("middle-plain-noise", MID, {"noise": True}, 7, 14, 20, marks=(needs_26,)),
    case("middle-stateful", MID, STATEFUL, 7, 14, 20),
    case("middle-stateful-no_val", MID, STATEFUL, 7, 14, 20, limit_val_batches=0),
    case("middle-stateful-workers", MID, {**STATEFUL, "workers": 2}, 7, 14, 20),
    case("middle-stateful-noise", MID, {**STATEFUL, "noise": True}, 7, 14, 20),
    case(
        "middle-stateful-workers-noise",
        MID,
        {**STATEFUL, "workers": 2, "noise": True},
        7,
        14,
        20,
        marks=(worker_generators,),
    ),
    case("epoch-plain-workers-noise", EPOCH, {"workers": 2, "noise": True}, 9, 17),
    case("epoch-stateful-workers-noise", EPOCH, {**STATEFUL, "workers": 2, "noise": True}, 9, 17),
    case("middle-and-last_batch-stateful", {"every_n_train_steps": 4}, STATEFUL, 6, 9, 14, 17),
    case("validation_in_the_middle", MID, STATEFUL, 7, 14, 20, val_check_interval=4),
    case("accumulate_2", MID, STATEFUL, 4, 8, accumulate_grad_batches=2),
    case("accumulate_3", {"every_n_train_steps": 1}, STATEFUL, 2, 4, 7, accumulate_grad_batches=3),
    case("accumulate_2-plain-epoch", EPOCH, PLAIN, 5, 9, accumulate_grad_batches=2),
    case("clipping-and-max_steps", MID, STATEFUL, 7, 14, gradient_clip_val=0.1, max_steps=20),
]


def chain(runs: ModuleType, root: Path, stops: tuple[int, ...], **options: Any) -> Any:
    """Interrupt at each of `stops`, each time with other random seeds, then run to the end."""
    make = options.pop("make", runs.Net)
    more = options.pop("more", lambda _: ())
    for seed, stop_at in enumerate(stops):
        run = runs.fit(
            root, *more(root), seed=1 + 100 * seed, make=partial(make, stop_at), **options
        )
        assert run.stopped, f"the run went on after step {stop_at}"
        assert run.first_step == 0 or seed > 0
    run = runs.fit(root, *more(root), seed=99, make=make, **options)
    assert 0 < run.first_step <= stops[-1], "the last run did not resume"
    return run


@pytest.mark.parametrize("what", CASES)
def test_a_chain_of_interrupted_runs_ends_where_the_uninterrupted_one_ends(
    runs: ModuleType, tmp_path: Path, what: Any
) -> None:
    save, loader, stops, options = what
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader, **options}
    reference = runs.fit(tmp_path / "reference", **options)
    resumed = chain(runs, tmp_path / "run", stops, **options)
    assert resumed.outcome == reference.outcome


def precision(runs: ModuleType) -> Any:
    import torch
    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@pytest.mark.parametrize(
    ("save", "stops", "loader"),
    [
        pytest.param(MID, (7, 14), STATEFUL, id="middle", marks=needs_26),
        pytest.param(EPOCH, (9, 17), PLAIN, id="epoch"),
    ],
)
def test_the_gradient_scaler_of_amp_goes_on_where_it_stood(
    runs: ModuleType, tmp_path: Path, save: Any, stops: tuple[int, ...], loader: Any
) -> None:
    """The scale grows every 4 steps, so a scaler that starts afresh ends with another one."""
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader}
    reference = runs.fit(tmp_path / "reference", plugins=[precision(runs)], **options)
    assert reference.trainer.precision_plugin.scaler.get_scale() > 1024
    for number, stop_at in enumerate(stops):
        make = partial(runs.Net, stop_at)
        runs.fit(tmp_path / "run", make=make, seed=1 + number, plugins=[precision(runs)], **options)
    resumed = runs.fit(tmp_path / "run", seed=99, plugins=[precision(runs)], **options)
    assert resumed.first_step > 0
    assert resumed.outcome == reference.outcome


@pytest.mark.parametrize(
    ("save", "stops", "loader"),
    [
        # two optimizers, so two global steps a batch
        pytest.param({"every_n_train_steps": 6}, (14, 28), STATEFUL, id="middle", marks=needs_26),
        pytest.param(EPOCH, (18, 34), PLAIN, id="epoch"),
        pytest.param({"every_n_train_steps": 16}, (18, 34), PLAIN, id="last_batch"),
    ],
)
def test_manual_optimization_with_two_optimizers_is_resumed_exactly(
    runs: ModuleType, tmp_path: Path, save: Any, stops: tuple[int, ...], loader: Any
) -> None:
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader}
    reference = runs.fit(tmp_path / "reference", make=runs.TwoOptimizers, **options)
    resumed = chain(runs, tmp_path / "run", stops, make=runs.TwoOptimizers, **options)
    assert reference.trainer.global_step == 48
    assert resumed.outcome == reference.outcome


def test_early_stopping_counts_on_over_interruptions(runs: ModuleType, tmp_path: Path) -> None:
    """It stops after three epochs without progress; each run alone sees fewer than three."""
    from lightning.pytorch.callbacks import EarlyStopping

    def more(_: object) -> list[Any]:
        return [EarlyStopping("val", min_delta=100.0, patience=3)]

    options = {"save": {"save_top_k": -1, **EPOCH}, "max_epochs": 9}
    reference = runs.fit(tmp_path / "reference", *more(None), **options)
    assert reference.trainer.current_epoch == 4, "it was to stop early"
    resumed = chain(runs, tmp_path / "run", (9, 17, 25), more=more, **options)
    assert resumed.outcome == reference.outcome


@pytest.mark.parametrize(
    "val",
    [
        pytest.param(True, id="val", marks=needs_26),
        pytest.param(False, id="no_val"),
    ],
)
@pytest.mark.parametrize(
    "loader", [PLAIN, pytest.param(STATEFUL, marks=needs_26)], ids=["plain", "stateful"]
)
def test_a_save_by_user_code_after_the_last_batch_of_an_epoch_is_resumed_exactly(
    runs: ModuleType, tmp_path: Path, loader: dict[str, Any], val: bool
) -> None:
    """`trainer.save_checkpoint` in `on_train_batch_end`, before Lightning ends the epoch."""

    def fit(root: Path, seed: int, stop_at: int | None = None) -> Any:
        from bt_lightning import BTLightning

        return runs.fit(
            root,
            callbacks=[BTLightning(dir=root), runs.SaveAtLastBatch(root)],
            make=partial(runs.Net, stop_at),
            seed=seed,
            loader_options=loader,
            enable_checkpointing=False,
            limit_val_batches=2 if val else 0,
        )

    reference = fit(tmp_path / "reference", 1)
    for seed, stop_at in ((1, 9), (2, 17)):
        assert fit(tmp_path / "run", seed, stop_at).stopped
    resumed = fit(tmp_path / "run", 99)
    assert resumed.first_step == 16
    assert resumed.outcome == reference.outcome


def test_weights_of_double_precision_are_not_rounded(runs: ModuleType, tmp_path: Path) -> None:
    """Lightning loads them into single precision, and converts the module then."""
    options = {"save": {"save_top_k": -1, **EPOCH}, "precision": "64-true"}
    reference = runs.fit(tmp_path / "reference", **options)
    resumed = chain(runs, tmp_path / "run", (9,), **options)
    assert resumed.outcome == reference.outcome


def test_a_resume_without_exact_says_where_it_stands_and_nothing_of_generators(
    runs: ModuleType, tmp_path: Path
) -> None:
    """The counterpart: `exact=False` keeps Lightning's behaviour, with another digest."""
    options = {"save": {"save_top_k": -1, **EPOCH}, "bt": {"exact": False}}
    reference = runs.fit(tmp_path / "reference", **options)
    resumed = chain(runs, tmp_path / "run", (9,), **options)
    assert resumed.outcome["step"] == reference.outcome["step"]
    assert resumed.outcome["weights"] != reference.outcome["weights"]


DDP = """
import json, signal, sys
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
import plugin_runs as runs
from bt_lightning import BTLightning

root, options = sys.argv[1], json.loads(sys.argv[2])


def fit(root, stop_at, seed):
    L.seed_everything(seed)
    bt = BTLightning(dir=root)
    trainer = runs.trainer(
        root,
        bt,
        ModelCheckpoint(save_top_k=-1, **options["save"]),
        strategy="ddp",
        devices=options["ranks"],
        use_distributed_sampler=False,
    )
    rows = runs.Numbers(length=32 * options["ranks"], noise=options["noise"])
    sampler = StatefulDistributedSampler(
        rows, options["ranks"], trainer.global_rank, shuffle=True, seed=5
    )
    batches = StatefulDataLoader(
        rows, batch_size=4, sampler=sampler, num_workers=options["workers"]
    )

    def end():
        # kill every rank once rank 0's last save is on the disk
        if not trainer.is_global_zero:
            signal.pause()
        bt._session.writer.saves.saver.drain()
        runs.kill_group()

    module = runs.Net(stop_at, end)
    trainer.fit(module, batches)
    if trainer.is_global_zero:
        print(json.dumps({**runs.outcome(trainer), "first": module.steps[0]}), flush=True)


for job in options["jobs"]:
    fit(root + job["name"], job["stop"], job["seed"])
"""


def ddp(scripts: Any, root: Path, jobs: list[dict[str, Any]], code: int, **options: Any) -> Any:
    """Run the jobs in one start of `DDP`, one after the other; what each of them printed."""
    defaults = {"ranks": 2, "workers": 0, "noise": False, "jobs": jobs}
    done = scripts.run(DDP, root, json.dumps({**defaults, **options}), code=code)
    return [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]


@needs_26
@pytest.mark.timeout(300)  # two starts of two ranks that each import torch and Lightning
@pytest.mark.parametrize(
    "what",
    [
        pytest.param((BATCH_LAST, 9, 8, {}), id="epoch_end"),
        pytest.param((MID, 10, 9, {"workers": 1}), id="middle-workers"),
    ],
)
def test_two_ranks_killed_in_the_middle_are_resumed_exactly(
    scripts: Any, tmp_path: Path, what: Any
) -> None:
    """SIGKILL of the whole process group. Dropout draws from each rank's own generator, and with
    loader workers the first epoch after a resume needs the sampler's own epoch (Lightning 21938).
    """
    save, stop, first, options = what
    jobs = [
        {"name": "/reference", "stop": None, "seed": 1},
        {"name": "/run", "stop": stop, "seed": 1},
    ]
    wanted = ddp(scripts, tmp_path, jobs, -signal.SIGKILL, save=save, **options)[0]
    jobs = [{"name": "/run", "stop": None, "seed": 99}]
    resumed = ddp(scripts, tmp_path, jobs, 0, save=save, **options)[0]
    assert resumed["first"] == first
    assert {**resumed, "first": 0} == wanted
