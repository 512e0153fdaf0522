"""`Checkpointer`: a loop that is killed goes on, and ends as one that was not."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from bt_lightning import (
    CheckpointCorruptError,
    Checkpointer,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidSettingError,
    KeepBest,
    KeepEvery,
    KeepLatest,
    RankLostError,
)
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.plain_loop.loop_state import LoopState
from bt_lightning.session.fit_ranks import FitRanks

if TYPE_CHECKING:
    from collections.abc import Callable

LOOP = Path(__file__).with_name("loop.py")
BATCHES, STEPS = 6, 18


@pytest.fixture(scope="session")
def run(run_ranks: Callable[..., list[list[str]]]) -> Callable[..., list[list[str]]]:
    """Runs `loop.py` below a folder."""

    def run(folder: Path, ranks: int = 1, *, code: int = 0, **words: Any) -> list[list[str]]:
        command = {"root": str(folder / "ck"), "store": (folder / "store").as_uri(), **words}
        return run_ranks(LOOP, json.dumps(command), ranks=ranks, code=code)

    return run


@pytest.fixture(scope="session")
def expected(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The last line of each rank of a loop that nobody killed."""

    @cache
    def of(ranks: int, workers: int = 0) -> list[str]:
        lines = run(tmp_path_factory.mktemp("whole"), ranks, seed=1, workers=workers)
        assert all(said[0] == "began 0" for said in lines)
        return [said[-1] for said in lines]

    return of


def stored(folder: Path) -> set[int]:
    """Steps of the checkpoints in the store."""
    return {int(p.parent.name.split("-")[1]) for p in folder.glob("store/**/model.safetensors")}


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0)])
@pytest.mark.parametrize(
    ("where", "step"),
    [
        ({"kill_at": BATCHES + 3}, BATCHES + 3),
        ({"kill_after": 2}, 2 * BATCHES),
        ({"kill_at": 3 * BATCHES}, 3 * BATCHES - 1),
    ],
    ids=["middle", "epoch end", "last batch"],
)
def test_a_killed_loop_ends_as_one_that_was_not(
    run: Any, expected: Any, tmp_path: Path, ranks: int, workers: int, where: Any, step: int
) -> None:
    """With dropout, noise of its own, batch norm, a shuffled loader and a scheduler."""
    run(tmp_path, ranks, seed=1, workers=workers, **where, code=-signal.SIGKILL)
    lines = run(tmp_path, ranks, seed=2, workers=workers)
    assert [said[0] for said in lines] == [f"began {step}"] * ranks
    assert [said[-1] for said in lines] == expected(ranks, workers)


def test_a_loader_without_a_state_goes_on_at_the_end_of_an_epoch(run: Any, tmp_path: Path) -> None:
    ((_, wanted),) = run(tmp_path / "whole", seed=1, plain=True)
    run(tmp_path, seed=1, plain=True, kill_after=2, code=-signal.SIGKILL)
    assert run(tmp_path, seed=2, plain=True) == [[f"began {2 * BATCHES}", wanted]]


def test_the_store_has_what_a_lost_disk_had(run: Any, expected: Any, tmp_path: Path) -> None:
    run(tmp_path, seed=1, kill_at=8, code=-signal.SIGKILL)
    run(tmp_path, seed=1, kill_at=14, code=-signal.SIGKILL)
    shutil.rmtree(tmp_path / "ck")
    ((began, ended),) = run(tmp_path, seed=2)
    assert [ended] == expected(1)
    found = {verify(one.path).step for one in list_committed(tmp_path / "ck")[0]}
    assert found == {STEPS - 1, STEPS}, "what it resumed from was read straight from the store"
    assert stored(tmp_path) == {int(began.split()[1]), STEPS - 1, STEPS}  # where it stays


def test_ended_loops_begin_at_their_end_and_keep_the_newest(run: Any, tmp_path: Path) -> None:
    run(tmp_path, seed=1)
    ((began, _),) = run(tmp_path, seed=2)
    assert began == f"began {STEPS}"
    assert stored(tmp_path) == {STEPS - 1, STEPS}
    assert {one.manifest.step for one in list_committed(tmp_path / "ck")[0]} == stored(tmp_path)


# told to end


@pytest.mark.parametrize(("ranks", "ends"), [(1, "all"), (2, "all"), (2, "last")])
def test_a_loop_that_is_told_to_end_saves_where_it_stands_and_goes_on_exactly(
    run_ranks: Any, expected: Any, tmp_path: Path, ranks: int, ends: str
) -> None:
    told = {"root": str(tmp_path / "ck"), "store": (tmp_path / "store").as_uri(), "grace": 60}
    codes = [128 + signal.SIGTERM] + [0] * (ranks - 1)
    words = json.dumps({**told, "seed": 1, "end_at": 3, "ends": ends})
    run_ranks(LOOP, words, ranks=ranks, codes=codes)
    events = {event["event"]: event for event in read_events(tmp_path / "ck")}
    at = events["preempted"]["step"]
    assert (at == 3) or (ranks == 2 and 3 < at <= STEPS)
    assert at in stored(tmp_path)
    lines = run_ranks(LOOP, json.dumps({**told, "seed": 2}), ranks=ranks)
    assert [said[0] for said in lines] == [f"began {at}"] * ranks
    assert [said[-1] for said in lines] == expected(ranks)


def test_a_loop_that_does_not_ask_is_ended_at_once(run_ranks: Any, tmp_path: Path) -> None:
    """Nothing may keep a process that the platform ends from ending."""
    words = {"root": str(tmp_path / "ck"), "store": (tmp_path / "store").as_uri()}
    run_ranks(LOOP, json.dumps({**words, "seed": 1, "end_at": 3}), code=-signal.SIGTERM)


def told_loop(root: Path, error: Exception | None = None) -> None:
    with Checkpointer(root, grace=60) as ck:
        assert not ck.step()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ck.step()
        if error is not None:
            raise error
        ck.save(state(), 2)


def test_the_handler_of_the_script_is_called_and_put_back(tmp_path: Path) -> None:
    called: list[int] = []

    def own(signum: int, _: object) -> None:
        called.append(signum)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            told_loop(tmp_path)
        assert called == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [one.manifest.step for one in list_committed(tmp_path)[0]] == [2]


def test_an_error_of_a_loop_that_is_told_to_end_is_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        told_loop(tmp_path, KeyError())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# in this process


def state(width: int = 2) -> dict[str, Any]:
    model = torch.nn.Linear(width, 1)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "step": 0}


def named(name: str) -> dict[str, Any]:
    """The state, with another name for the model."""
    given = state()
    return {name: given.pop("model"), **given}


def saved(root: Path, **more: Any) -> dict[str, Any]:
    given = state()
    with Checkpointer(root, **more) as ck:
        ck.load_latest(given)
        given["model"].weight.data.fill_(3.0)
        given["step"] = 7
        ck.save(given, 7, epoch=2, metrics={"loss": 0.5})
    return given


def test_counters_metrics_and_weights_are_where_other_tools_look(tmp_path: Path) -> None:
    saved(tmp_path)
    ((one,), _, _) = list_committed(tmp_path)
    manifest = one.manifest
    assert (manifest.checkpoint_id, manifest.step, manifest.epoch) == ("checkpoint-7", 7, 2)
    assert manifest.metrics == {"loss": 0.5}
    assert manifest.resumable
    assert manifest.entry("model.safetensors") is not None


def test_what_is_loaded_is_in_the_objects_and_in_the_dictionary(tmp_path: Path) -> None:
    saved(tmp_path)
    given = state()
    with Checkpointer(tmp_path) as ck:
        assert ck.load_latest(given) is given
    assert given["step"] == 7
    assert given["model"].weight.tolist() == [[3.0, 3.0]]


def test_without_a_checkpoint_the_state_stays_as_it_is(tmp_path: Path) -> None:
    given = state()
    before = given["model"].weight.tolist()
    with Checkpointer(tmp_path) as ck:
        ck.load_latest(given)
    assert given["step"] == 0
    assert given["model"].weight.tolist() == before
    with pytest.raises(CheckpointNotFoundError), Checkpointer(tmp_path / "x", resume="require"):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in what compile imports
def test_of_several_models_and_a_compiled_one_each_is_found_by_its_own_name(
    tmp_path: Path,
) -> None:
    def two() -> dict[str, Any]:
        model = torch.nn.Linear(2, 2)
        return {"average": torch.optim.swa_utils.AveragedModel(model), "model": model}

    first = two()
    first["model"].weight.data.add_(1)
    with Checkpointer(tmp_path) as ck:
        ck.save({**first, "model": torch.compile(first["model"])}, 1)
    assert set(load_file(tmp_path / "checkpoint-1" / "model.safetensors")) == {"bias", "weight"}
    second = two()
    with Checkpointer(tmp_path) as ck:
        ck.load_latest(second)
    for name, model in first.items():
        for key, value in model.state_dict().items():
            assert torch.equal(second[name].state_dict()[key], value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"net": torch.nn.Linear(2, 1)}, "the checkpoint has no net: it has model, optimizer"),
        ({"model": torch.nn.Linear(3, 1)}, "the weights of 'model'"),
        ({"model": torch.nn.Linear(2, 1), "ema": 0.5}, "has no ema"),
    ],
)
def test_another_loop_s_state_is_refused(tmp_path: Path, given: Any, said: str) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=said), Checkpointer(tmp_path) as ck:
        ck.load_latest(given)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    from bt_lightning.session.checkpoint_writer import CheckpointWriter

    CheckpointWriter().save({"step": 1, "optimizer_states": []}, tmp_path / "c-1", tmp_path)
    with (
        pytest.raises(CheckpointMismatchError, match="no Checkpointer"),
        Checkpointer(tmp_path) as ck,
    ):
        ck.load_latest(state())


def test_damage_is_no_reason_to_begin_anew(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "checkpoint-7" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointCorruptError), Checkpointer(tmp_path) as ck:
        ck.load_latest(state())


def test_after_an_exception_what_was_saved_is_published(tmp_path: Path) -> None:
    store = tmp_path / "store"
    checkpointer = Checkpointer(tmp_path / "ck", store.as_uri(), job="j")
    with contextlib.suppress(KeyError), checkpointer as ck:
        ck.save(state(), 5)
        raise KeyError
    assert [path.parent.name for path in store.rglob("model.safetensors")] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": [3]}, "expected policies"),
        ({"keep": "all"}, "keep"),
        ({"grace": "soon"}, "grace"),
        ({"interval": 5}, "interval: only a Trainer does that"),
        ({"nonsense": 1}, "nonsense: no such option"),
        ({"dir": "s3://bucket/x"}, "a URL"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSettingError, match=said), Checkpointer(**wrong):
        pass


def test_outside_of_its_block_it_says_how_to_use_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="`with` block"):
        Checkpointer(tmp_path).step()


def test_what_a_loop_leaves_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would train with an optimizer that begins, and never hear of it."""
    saved(tmp_path)
    given = state()
    del given["optimizer"]
    with Checkpointer(tmp_path) as ck:
        ck.load_latest(given)
    assert "not restored, as the loop did not name it: optimizer" in caplog.text


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # of torchdata
def test_on_another_number_of_ranks_what_is_a_rank_s_own_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = StatefulDataLoader(list(range(8)))
    next(iter(rows))
    found = LoopState.of({"rows": rows, "step": 3})
    ranks = [found.of_this_rank(exact=False)]
    again = LoopState.of({"rows": StatefulDataLoader(list(range(8))), "step": 0})
    for world_size, first in ((1, 1), (2, 0)):
        assert again.load(found.checkpoint(ranks), 0, world_size) == {"step": 3}
        assert next(iter(again.own["rows"])).item() == first
    assert "saved by 1 ranks, resumed on 2: rows begin anew" in caplog.text


@pytest.mark.parametrize("name", ["model", "net"])
@pytest.mark.parametrize("resumed", [False, True])
def test_only_weights_are_taken_from_an_earlier_job(
    tmp_path: Path, resumed: bool, name: str
) -> None:
    saved(tmp_path / "earlier")
    options = {"load_dir": tmp_path / "earlier", "resume": "weights"}
    if resumed:
        with Checkpointer(tmp_path / "own", **options) as ck:
            given = ck.load_latest(named(name))
            given["step"] = 1
            ck.save(given, 1)
    given = named(name)
    with Checkpointer(tmp_path / "own", **options) as ck:
        ck.load_latest(given)
    assert given[name].weight.tolist() == [[3.0, 3.0]]
    assert given["step"] == int(resumed)


def test_odd_values_come_back_as_they_were(tmp_path: Path) -> None:
    values = {"nan": float("nan"), "names": ("a", {"b": [1, 2]}), "none": None, "at": torch.ones(3)}
    with Checkpointer(tmp_path) as ck:
        ck.save(values, 1, metrics={"loss": torch.tensor(float("inf")), "nan": float("nan")})
    given: dict[str, Any] = dict.fromkeys(values)
    with Checkpointer(tmp_path) as ck:
        ck.load_latest(given)
    assert given["nan"] != given["nan"]
    assert given["names"] == ("a", {"b": [1, 2]})
    assert given["none"] is None
    assert given["at"].tolist() == [1.0, 1.0, 1.0]


def test_one_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step in (1, 2, 2):
        with checkpointer as ck:
            given = ck.load_latest({"step": 0})
            ck.save({"step": step}, step)
    assert given["step"] == 2
    assert [one.manifest.checkpoint_id for one in list_committed(tmp_path)[0]] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (None, {1, 2, 3, 4, 5, 6}),
        (1, {6}),
        ([KeepLatest(2)], {5, 6}),
        (KeepBest("loss", "min"), {3, 6}),
        ([KeepLatest(1), KeepBest("loss", "max")], {2, 6}),
        ([KeepEvery(2)], {1, 2, 4, 6}),
    ],
)
@pytest.mark.parametrize("opened_again", [False, True])
def test_policies_say_which_checkpoints_stay_on_disk_and_in_the_store(
    tmp_path: Path, keep: Any, stay: set[int], opened_again: bool
) -> None:
    """`opened_again`: with a disk that is lost, so half of them are known by the store alone."""
    losses = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.4, 6: float("nan")}
    checkpointer = Checkpointer(tmp_path / "ck", (tmp_path / "store").as_uri(), job="j", keep=keep)
    for steps in ((1, 2, 3), (4, 5, 6)) if opened_again else ((1, 2, 3, 4, 5, 6),):
        with checkpointer as ck:
            ck.load_latest({"step": 0})
            for step in steps:
                ck.save({"step": step, "at": torch.ones(1)}, step, metrics={"loss": losses[step]})
        if opened_again:
            shutil.rmtree(tmp_path / "ck")
    found = {
        int(path.parent.name.split("-")[1]) for path in tmp_path.rglob("store/**/bt_manifest.json")
    }
    assert found == stay | ({3} if opened_again else set())  # what it resumed from


def test_one_that_cannot_meet_the_other_ranks_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: FitRanks) -> None:
        msg = "rank 1 has died"
        raise RankLostError(msg)

    monkeypatch.setattr(FitRanks, "begin", refuse)
    with pytest.raises(RankLostError), Checkpointer(tmp_path):
        pass
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("make", [DataLoader, iter], ids=["loader", "iterator"])
def test_what_has_no_state_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    refused = pytest.raises(InvalidSettingError, match=r"data is a .*StatefulDataLoader")
    with refused, Checkpointer(tmp_path) as ck:
        ck.load_latest({"data": make([1, 2])})


def test_names_are_strings(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="name 3"), Checkpointer(tmp_path) as ck:
        ck.save({3: 4}, 1)  # type: ignore[dict-item]
