"""A disk that fails, for a while or for good: the store takes what is saved."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from lightning.pytorch.callbacks import Callback

from bt_lightning import DirectoryFullError, DirectoryUnusableError
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.resumable_download import verify_bytes as check
from tests.bad_store import BadStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.matrix

MB = 2**20
PREFIX = job_prefix("p", "j", 0)
EVERY = {"every_n_train_steps": 1, "save_top_k": -1}
BEST = {"every_n_train_steps": 1, "save_top_k": 1, "monitor": "step", "mode": "max"}
_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: from then on the file system answers with EIO."""


class At(Callback):
    """Does something after the given steps."""

    def __init__(self, **acts: Callable[[], None]) -> None:
        self.acts = {int(name[4:]): act for name, act in acts.items()}

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.acts.get(trainer.global_step, lambda: None)()


def remount(place: Path, option: str) -> None:
    command = ["mount", "-o", f"remount,{option}", str(place)]
    subprocess.run(command, check=True, capture_output=True)


def shut_down(place: Path) -> None:
    """End the file system, as a device does that is gone."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, (2).to_bytes(4, "little"))
    except OSError as error:
        pytest.skip(f"needs a file system that can be ended: {error}")
    finally:
        os.close(descriptor)


def bt(store: Path | str | None) -> dict[str, Any]:
    return {"store": str(store), "project": "p", "job": "j"} if store is not None else {}


def steps(place: Path) -> set[int]:
    found, refused, _ = list_committed(place)
    assert not refused
    return {verify(checkpoint.path).step for checkpoint in found}


@pytest.fixture
def bucket(_no_leaks: None) -> Iterator[BadStore]:
    store = BadStore()
    yield store
    store.close()


def limited(size: int) -> None:
    """Let the worker write no file beyond `size` bytes: the disk refuses it, and only it."""
    (worker,) = multiprocessing.active_children()
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("save", [EVERY, BEST], ids=["all", "best"])
def test_a_disk_that_fails_for_a_while_costs_nothing(
    runs: ModuleType, bucket: BadStore, tmp_path: Path, save: dict[str, Any]
) -> None:
    root = tmp_path / "root"
    whole = runs.fit(tmp_path / "whole", save=save)
    at = At(step4=lambda: limited(100), step16=lambda: limited(resource.RLIM_INFINITY))
    options = {**bt("s3://bucket/x"), "storage_options": bucket.options}
    with pytest.warns(UserWarning, match="the disk fails .*File too large") as caught:
        run = runs.fit(root, at, save=save, bt=options)
    assert run.outcome == whole.outcome
    said = [str(each.message) for each in caught if "the disk fails" in str(each.message)]
    assert len(said) == 1
    assert "free some space" not in said[0]
    saves = [event for event in read_events(root) if event["event"] == "save"]
    assert {event["decision"] for event in saves} <= {"saved", "waited"}
    assert sum(event["streamed"] for event in saves) > 5
    store = open_store("s3://bucket/x", bucket.options)
    found = list_job(store, PREFIX).committed
    for folder in found:
        check(StoreReader(store, PREFIX, folder))
    stored = {Manifest.from_bytes(data, "").step for data in found.values()}
    if save is EVERY:
        assert stored == set(range(1, 25))
    else:
        assert steps(root) == stored == {24}


@pytest.mark.timeout(120)
def test_a_disk_that_dies_leaves_the_rest_of_the_run_to_the_store(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    root, store = small_disk(64 * MB, "ext4"), tmp_path / "store"
    whole = runs.fit(tmp_path / "whole", save=EVERY)
    at = At(step12=lambda: shut_down(root))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = runs.fit(root, at, save=EVERY, bt={**bt(store), "on_error": "warn"})
    assert run.outcome == whole.outcome
    assert set(range(14, 25)) <= steps(store)
    said = [str(each.message) for each in caught]
    assert len([text for text in said if "the disk fails (" in text]) == 1
    assert not [text for text in said if "free some space" in text]


def test_without_a_store_a_disk_that_fails_is_said_with_its_reason(
    runs: ModuleType, small_disk: Any
) -> None:
    root = small_disk(64 * MB, "ext4")
    remount(root, "errors=remount-ro")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="while ending the run")
        with pytest.raises(DirectoryUnusableError, match="mount it for writing") as caught:
            runs.fit(root, At(step4=lambda: remount(root, "abort")), save=EVERY)
    assert not isinstance(caught.value, DirectoryFullError)
    assert "free some space" not in str(caught.value)
    assert {1, 2} <= steps(root)


@pytest.mark.timeout(240)
def test_a_volume_without_inodes_is_said_to_have_none(
    runs: ModuleType, small_disk: Any, tmp_path: Path
) -> None:
    root = small_disk(64 * MB)
    remount(root, "nr_inodes=60")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="while ending the run")
        with pytest.raises(DirectoryFullError, match="it has no more inodes"):
            runs.fit(root, save=EVERY)
    assert {1, 2, 3} <= steps(root)
    store = tmp_path / "store"
    run = runs.fit(root, save=EVERY, bt=bt(store), seed=5)
    assert run.first_step >= 3
    assert steps(root) | steps(store) >= set(range(1, 25))
