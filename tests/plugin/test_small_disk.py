"""A disk that is smaller than what is saved: nothing is lost, and every path leads somewhere."""

from __future__ import annotations

import contextlib
import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import DirectoryFullError, StoreTransientError
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.disk_space import usage
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

MB = 2**20
WIDTH = 8000  # 0.4 MB of weights, 1.2 MB a checkpoint
EVERY = {"every_n_train_steps": 1, "save_top_k": -1}


def net(runs: ModuleType, stop_at: int | None = None) -> Callable[[], Any]:
    return lambda: runs.Net(stop_at, width=WIDTH)


def bt(store: Path | str, **more: Any) -> dict[str, Any]:
    return {"store": str(store), "project": "p", "job": "j", **more}


def steps(place: Path) -> set[int]:
    """Of what is whole there."""
    found, refused, _ = list_committed(place)
    assert not refused
    return {verify(checkpoint.path).step for checkpoint in found}


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(root) if event["event"] == kind]


@pytest.fixture
def uninterrupted(runs: ModuleType, tmp_path: Path) -> dict[str, Any]:
    """Where a run ends that has all the disk it wants."""
    return runs.fit(tmp_path / "whole", make=net(runs), save=EVERY).outcome


def test_a_run_whose_checkpoints_are_many_times_the_disk_ends_as_any_other(
    runs: ModuleType, small_disk: Any, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    root, store = small_disk(4 * MB), tmp_path / "store"
    run = runs.fit(root, make=net(runs), save=EVERY, bt=bt(store))
    assert run.outcome == uninterrupted
    assert steps(root) | steps(store) == set(range(1, 25))
    assert events(root, "evicted")
    saves = events(root, "save")
    assert sum(save["evicted"] for save in saves) == len(events(root, "evicted"))
    assert all(save["decision"] in {"saved", "waited"} for save in saves)


def test_a_checkpoint_larger_than_the_disk_is_saved_and_resumed_from_the_store(
    runs: ModuleType, small_disk: Any, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    root, store = small_disk(MB), tmp_path / "store"
    first = runs.fit(root, make=net(runs, stop_at=16), save=EVERY, bt=bt(store))
    assert first.stopped
    assert steps(root) == set()
    assert steps(store) == set(range(1, 17))
    assert all(save["streamed"] for save in events(root, "save"))
    second = runs.fit(root, make=net(runs), save=EVERY, bt=bt(store), seed=5)
    assert second.first_step == 16
    assert second.outcome == uninterrupted
    assert steps(store) == set(range(1, 25))


def test_the_budget_of_an_argument_or_a_variable_is_kept(
    runs: ModuleType, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    runs.fit(root, make=net(runs), save=EVERY, bt=bt(store, volume_size_gib=4 * MB / 2**30))
    assert usage(root) <= 4 * MB
    assert steps(root) | steps(store) == set(range(1, 25))
    environ.setenv("BT_VOLUME_SIZE_GIB", str(4 * MB / 2**30))
    other = tmp_path / "other"
    runs.fit(other, make=net(runs), save=EVERY, bt=bt(store, job="k"))
    assert usage(other) <= 4 * MB


def test_what_retention_lets_go_goes_though_only_the_store_has_it(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    root, store = small_disk(MB), tmp_path / "store"
    save = {"every_n_train_steps": 2, "save_top_k": 2, "monitor": "loss", "save_last": True}
    run = runs.fit(root, make=net(runs), save=save, bt=bt(store))
    (callback,) = run.trainer.checkpoint_callbacks
    kept = {name.rpartition("/")[2] for name in callback.best_k_models}
    stored = {found.manifest.checkpoint_id for found in list_committed(store)[0]}
    assert stored == kept | {"last"}


def test_every_path_of_an_evicted_checkpoint_still_leads_to_it(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    """`best`, `load_from_checkpoint`, and `ckpt_path` of a fit in the same process."""
    root, store = small_disk(4 * MB), tmp_path / "store"
    save = {"every_n_train_steps": 1, "save_top_k": -1, "monitor": "step", "mode": "min"}
    run = runs.fit(root, make=net(runs), save=save, bt=bt(store), max_epochs=2)
    best = run.trainer.checkpoint_callback.best_model_path
    assert best.endswith("checkpoint-1")
    delete_directory(root / "checkpoint-1", root)  # if a slow store let others make room
    run.trainer.test(run.module, runs.validation(), ckpt_path="best", verbose=False)
    loaded = type(run.module).load_from_checkpoint(best, width=WIDTH)
    tested = run.module.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.equal(tested[name])
    run.module.steps.clear()
    run.trainer.fit(run.module, runs.loader(), runs.validation(), ckpt_path=best)
    assert run.first_step == 1


def test_a_name_that_an_evicted_checkpoint_has_is_taken(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    """Or the next of that name would be another generation, which retention replaces."""
    root, store = small_disk(MB), tmp_path / "store"
    save = {"every_n_train_steps": 4, "save_top_k": -1, "monitor": "loss", "filename": "same"}
    runs.fit(root, make=net(runs), save=save, bt=bt(store), max_epochs=1)
    stored = {found.manifest.checkpoint_id for found in list_committed(store)[0]}
    assert stored == {"same", "same-v1"}


def test_a_save_without_room_is_raised_once_and_what_was_before_stays(
    runs: ModuleType, small_disk: Any
) -> None:
    root = small_disk(4 * MB)
    with warnings.catch_warnings():  # a save that was under way then has no room either
        warnings.filterwarnings("ignore", message="while ending the run")
        with pytest.raises(DirectoryFullError, match=r"was not saved: it needs [\d,]+ bytes"):
            runs.fit(root, make=net(runs), save=EVERY)
    assert steps(root) == {1, 2, 3}


def test_with_on_error_warn_training_goes_on_without_the_saves_that_have_no_room(
    runs: ModuleType, small_disk: Any, uninterrupted: dict[str, Any]
) -> None:
    root = small_disk(4 * MB)
    with pytest.warns(UserWarning, match="was not saved"):
        run = runs.fit(root, make=net(runs), save=EVERY, bt={"on_error": "warn"})
    assert run.outcome == uninterrupted
    assert steps(root) == {1, 2, 3}
    refused = [save for save in events(root, "save") if save["decision"] == "refused"]
    assert len(refused) == 21


def test_training_that_writes_by_itself_makes_room_too(
    runs: ModuleType, small_disk: Any, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    root, store = small_disk(4 * MB), tmp_path / "store"
    with pytest.warns(UserWarning, match="not enough host memory"):
        run = runs.fit(root, make=net(runs), save=EVERY, bt=bt(store, arena_memory=10))
    assert run.outcome == uninterrupted
    assert steps(root) | steps(store) == set(range(1, 25))
    assert sum(save["evicted"] for save in events(root, "save")) > 10


@pytest.mark.filterwarnings("ignore:there is not enough host memory")
def test_training_that_writes_by_itself_says_when_there_is_no_room(
    runs: ModuleType, small_disk: Any
) -> None:
    root = small_disk(4 * MB)
    with pytest.warns(UserWarning, match="writes by itself goes to the disk only"):
        runs.fit(root, make=net(runs), save=EVERY, bt={"arena_memory": 10, "on_error": "warn"})
    assert steps(root) == {1, 2, 3}


def test_a_start_without_the_store_goes_on_from_nothing_older_than_what_it_alone_has(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    root, store = small_disk(4 * MB), tmp_path / "store"
    save = {"every_n_train_steps": 1, "save_top_k": -1}
    runs.fit(root, make=net(runs, stop_at=3), save=save, bt=bt(store))
    newest = max(list_committed(root)[0], key=lambda found: found.manifest.step)
    assert newest.manifest.step == 3
    dead = {"endpoint_url": "http://127.0.0.1:9", "key": "key", "secret": "secret"}
    options = bt("s3://bucket/x", storage_options=dead)
    away = {"checkpoint": "checkpoint-9", "step": 9, "generation": 1, "created_at": "2030"}
    (root / ".bt_lightning" / "store_only.json").write_text(json.dumps(away))
    with pytest.raises(StoreTransientError, match="checkpoint-9, is in the store only"):
        runs.fit(root, make=net(runs), save=save, bt=options)


def test_a_run_starts_on_a_disk_that_is_full_of_its_own_copies(
    runs: ModuleType, small_disk: Any, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    root, store = small_disk(4 * MB), tmp_path / "store"
    runs.fit(root, make=net(runs, stop_at=16), save=EVERY, bt=bt(store))
    with contextlib.suppress(OSError), (root / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    second = runs.fit(root, make=net(runs), save=EVERY, bt=bt(store))
    assert second.first_step == 16
    assert second.outcome == uninterrupted
    assert steps(root) | steps(store) == set(range(1, 25))
