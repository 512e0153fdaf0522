"""A store that is bad holds up neither training nor what is to go from the disk."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from lightning.pytorch.callbacks import Callback

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from tests.bad_store import KINDS, BadStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

WIDTH = 5000
SIZE = 760_000  # bytes of a checkpoint
STEPS = 24
SLACK_S = 60.0
"""One checkpoint takes the slow store 38 s: all that are saved, a quarter of an hour."""


@pytest.fixture
def store(_no_leaks: None) -> Iterator[BadStore]:
    store = BadStore()
    yield store
    store.close()


class Turns(Callback):
    """Makes the store bad after a few steps; counts what is committed on the disk at each step."""

    def __init__(self, store: BadStore, kind: str, root: Path) -> None:
        self.store, self.kind, self.root = store, kind, root
        self.most, self.began = 0, 0.0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            self.store.become(self.kind)
            self.began = time.monotonic()
        self.most = max(self.most, len(list_committed(self.root)[0]))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("budget", [None, 12 * SIZE / 2**30], ids=["disk", "budget"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_store_holds_up_neither_training_nor_removals(
    runs: ModuleType, store: BadStore, tmp_path: Path, kind: str, budget: float | None
) -> None:
    root = tmp_path / "root"
    turns = Turns(store, kind, root)
    bt = {
        "store": "s3://bucket/x",
        "storage_options": store.options,
        "project": "p",
        "job": "j",
        "drain_timeout": timedelta(seconds=1),
        "on_error": "warn",
        "volume_size_gib": budget,
    }
    save = {"every_n_train_steps": 1, "save_top_k": 1, "monitor": "step", "mode": "max"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = runs.fit(
            root,
            turns,
            make=lambda: runs.Net(width=WIDTH),
            save=save,
            bt=bt,
            max_epochs=STEPS // runs.BATCHES,
        )
    took = time.monotonic() - turns.began
    assert run.outcome["step"] == STEPS
    said = [str(each.message) for each in caught if "not everything reached" in str(each.message)]
    assert len(said) == 1
    assert f"checkpoint-{STEPS}. " in said[0]
    assert took < SLACK_S
    assert turns.most <= 3
    (newest, *others) = list_committed(root)[0]
    assert verify(newest.path).step == STEPS
    assert len(others) <= 2
    saves = [event for event in read_events(root) if event["event"] == "save"]
    assert [save["decision"] for save in saves if save["decision"] not in {"saved", "waited"}] == []
    assert len(saves) == STEPS
