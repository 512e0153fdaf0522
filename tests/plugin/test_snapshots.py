"""Saves of a real fit are snapshots: of one step, cheap, told of, and there after a kill."""

from __future__ import annotations

import csv
import errno
import json
import logging
import signal
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from bt_lightning import BTCheckpointIO, BTLightning, DirectoryUnusableError
from bt_lightning.lightning_plugin.weight_change_watch import WeightChangeWatch, overrides
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.session import snapshot_writer, writer_session
from bt_lightning.snapshot.encode_tree import Encoder
from bt_lightning.snapshot.state_files import EncodingCache

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

EVERY = {"every_n_train_steps": 1, "save_top_k": -1}


def saves_of(root: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(root) if event["event"] == "save"]


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("snapshot", ["auto", "lazy", "eager"])
def test_a_checkpoint_holds_what_its_save_saw(
    runs: ModuleType, tmp_path: Path, snapshot: str
) -> None:
    wanted = runs.Wanted()
    runs.fit(tmp_path, wanted, bt={"snapshot": snapshot}, max_epochs=1)
    wanted.check(tmp_path)
    kinds = {event["snapshot"] for event in saves_of(tmp_path)}
    assert kinds == {"eager" if snapshot == "eager" else "lazy"}


@pytest.mark.usefixtures("late")
def test_a_first_save_finds_its_state_encoded(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, threads = Encoder._fragment, []

    def noted(self: Encoder, value: Any, path: tuple[str, ...]) -> Any:
        threads.append(threading.current_thread().name)
        return encode(self, value, path)

    recall = EncodingCache.fragments_for

    def patient(self: EncodingCache, prefix: str) -> Any:
        if self.early is not None:
            wait([self.early], 60)  # three quick steps may be over before it has begun
        return recall(self, prefix)

    monkeypatch.setattr(Encoder, "_fragment", noted)
    monkeypatch.setattr(EncodingCache, "fragments_for", patient)
    wanted = runs.Wanted()
    runs.fit(tmp_path, wanted, save={"every_n_train_steps": 3, "save_top_k": -1}, max_epochs=1)
    wanted.check(tmp_path)
    assert threads
    assert all(name.startswith("bt_lightning snapshot") for name in threads)


@pytest.mark.usefixtures("late")
def test_manual_optimization_with_two_optimizers_changes_nothing_too_early(
    runs: ModuleType, tmp_path: Path
) -> None:
    wanted = runs.Wanted()
    save = {"every_n_train_steps": 2, "save_top_k": -1}
    runs.fit(tmp_path, wanted, make=runs.TwoOptimizers, save=save, max_epochs=2)
    wanted.check(tmp_path)


@pytest.mark.usefixtures("late")
def test_gradient_accumulation_and_clipping_change_nothing_too_early(
    runs: ModuleType, tmp_path: Path
) -> None:
    wanted = runs.Wanted()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 2}
    runs.fit(tmp_path, wanted, **options)
    wanted.check(tmp_path)


@pytest.mark.usefixtures("late")
def test_a_module_that_clips_its_weights_behind_a_save_is_copied_at_once(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As WGANs do it, through `.data`, which autograd does not see: `auto` must not be lazy."""

    class Clipping(runs.Net):
        def on_train_batch_end(self, *args: Any) -> None:
            for weight in self.parameters():
                weight.data.clamp_(-0.01, 0.01)

    wanted = runs.Wanted()
    with caplog.at_level(logging.INFO, "bt_lightning"):
        runs.fit(tmp_path, wanted, make=Clipping, max_epochs=1)
    wanted.check(tmp_path)
    told = [record.message for record in caplog.records if "on_train_batch_end" in record.message]
    assert len(told) == 1
    assert "snapshot='lazy'" in told[0]


class Swapping(Callback):
    """Validates other weights, as callbacks that average them do; also through `.data`."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        for weight in pl_module.parameters():
            weight.data.mul_(0)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        for weight in pl_module.parameters():
            weight.data.add_(1)


@pytest.mark.usefixtures("late")
def test_a_callback_that_swaps_weights_for_validation_waits_for_the_copy(
    runs: ModuleType, tmp_path: Path
) -> None:
    wanted = runs.Wanted()
    save = {"every_n_train_steps": 3, "save_top_k": -1}
    runs.fit(tmp_path, wanted, Swapping(), save=save, max_epochs=1, val_check_interval=3)
    wanted.check(tmp_path)


@pytest.mark.usefixtures("late")
def test_weight_averaging_of_lightning_is_saved_as_it_was(runs: ModuleType, tmp_path: Path) -> None:
    averaging = getattr(L.pytorch.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("this Lightning has none")
    wanted = runs.Wanted()
    save = {"every_n_train_steps": 3, "save_top_k": -1}
    runs.fit(tmp_path, averaging(), wanted, save=save, max_epochs=2, val_check_interval=3)
    wanted.check(tmp_path)


class Touching(Callback):
    """A hook between a save and the next step that writes to a weight."""

    def __init__(self) -> None:
        self.done = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3 and not self.done:
            self.done = True
            with torch.no_grad():
                next(pl_module.parameters()).mul_(2)


@pytest.mark.usefixtures("late")
def test_a_torn_copy_is_refused_with_one_warning_and_the_run_goes_on_eagerly(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="checkpoint-3 was given up") as caught:
        runs.fit(tmp_path, Touching(), max_epochs=1)
    assert len([w for w in caught if "given up" in str(w.message)]) == 1
    assert names(tmp_path) == {f"checkpoint-{step}" for step in (1, 2, 4, 5, 6, 7, 8)}
    kinds = {event["step"]: event["snapshot"] for event in saves_of(tmp_path)}
    assert kinds[2] == "lazy"
    assert kinds[8] == "eager"


@pytest.mark.usefixtures("late")
def test_a_torn_copy_with_lazy_is_an_error(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="snapshot='eager'"):
        runs.fit(tmp_path, Touching(), bt={"snapshot": "lazy"}, max_epochs=1)


def test_numbers_of_each_save_go_to_the_loggers_and_to_the_events(
    runs: ModuleType, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "logs")
    root, store = tmp_path / "root", tmp_path / "store"
    runs.fit(root, logger=logger, bt={"store": str(store)}, max_epochs=1)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        rows = [row for row in csv.DictReader(file) if row.get("checkpoint/bytes")]
    assert len(rows) >= 7, "the last save ends after the last step"
    for row in rows:
        assert float(row["checkpoint/bytes"]) > 1000
        assert float(row["checkpoint/call_ms"]) > 0
        assert float(row["checkpoint/local_durable_s"]) > 0
    events = list(read_events(root))
    for kind in ("save", "durable", "published"):
        named = {e.get("checkpoint_id", e.get("checkpoint")) for e in events if e["event"] == kind}
        assert named == {f"checkpoint-{step}" for step in range(1, 9)}, kind
    assert all(event["remote_durable_s"] > 0 for event in events if event["event"] == "published")


def test_last_is_the_same_bytes_and_the_file_is_a_link(runs: ModuleType, tmp_path: Path) -> None:
    runs.fit(tmp_path, save={"save_top_k": 1, "save_last": True}, max_epochs=2)
    weights = [(tmp_path / name / "model.safetensors") for name in ("checkpoint-16", "last")]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino
    states = [BTCheckpointIO().load_checkpoint(path.parent) for path in weights]
    assert states[0]["global_step"] == states[1]["global_step"] == 16


def test_a_checkpoint_under_way_can_be_loaded_and_let_go(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """Whoever asks for it waits for it; one that is let go is gone once a newer one is there."""

    def act(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            path = tmp_path / "checkpoint-3"
            trainer.save_checkpoint(path)
            assert trainer.strategy.load_checkpoint(path)["global_step"] == 3
            trainer.save_checkpoint(tmp_path / "checkpoint-let-go")
            trainer.strategy.remove_checkpoint(tmp_path / "checkpoint-let-go")

    acting = Callback()
    acting.on_train_batch_end = act
    save = {"every_n_train_steps": 4, "save_top_k": -1}
    callbacks = [acting, BTLightning(dir=tmp_path), ModelCheckpoint(**save)]
    runs.fit(tmp_path, callbacks=callbacks, max_epochs=1)
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-4", "checkpoint-8"}


def test_without_memory_for_an_arena_training_writes_by_itself_and_says_so_once(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="not enough host memory") as caught:
        runs.fit(tmp_path, bt={"arena_memory": 10}, max_epochs=1)
    assert len([w for w in caught if "host memory" in str(w.message)]) == 1
    assert names(tmp_path) == {f"checkpoint-{step}" for step in range(1, 9)}


def test_a_save_that_training_writes_by_itself_leaves_the_numbers_of_any_other(
    runs: ModuleType, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger, root = CSVLogger(tmp_path / "logs"), tmp_path / "root"
    options = {"arena_memory": 10, "store": str(tmp_path / "store")}
    with pytest.warns(UserWarning, match="not enough host memory"):
        runs.fit(root, logger=logger, bt=options, max_epochs=1)
    events = list(read_events(root))
    for kind in ("save", "durable", "published"):
        named = {e.get("checkpoint_id", e.get("checkpoint")) for e in events if e["event"] == kind}
        assert named == {f"checkpoint-{step}" for step in range(1, 9)}, kind
    for event in saves_of(root):
        assert event["checkpoint_id"] == f"checkpoint-{event['step']}"
        assert (event["snapshot"], event["decision"]) == ("direct", "saved")
        assert event["call_ms"] > 0  # by which the interval of saves is chosen
        size = read_manifest(root / event["checkpoint_id"]).size
        assert event["bytes"] == size
        assert 0 < event["write_s"] <= event["local_durable_s"]
        assert event["call_ms"] >= 1000 * event["write_s"]
        assert event["copy_ms"] == event["guard_ms"] == 0
    durable = [event for event in events if event["event"] == "durable"]
    for save, event in zip(saves_of(root), durable, strict=True):
        for name in ("number", "bytes", "write_s", "local_durable_s", "cpu_s"):
            assert event[name] == save[name]
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        rows = [row for row in csv.DictReader(file) if row.get("checkpoint/bytes")]
    assert len(rows) >= 8
    assert all(float(row["checkpoint/call_ms"]) > 0 for row in rows)
    assert any(float(row["checkpoint/remote_durable_s"] or 0) > 0 for row in rows)


def test_a_save_that_training_had_no_room_to_write_is_noted_as_refused(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot_writer, "commit", full)
    with (
        pytest.warns(UserWarning, match="not enough host memory"),
        pytest.raises(DirectoryUnusableError, match="checkpoint-1 could not be written"),
    ):
        runs.fit(tmp_path, bt={"arena_memory": 10}, max_epochs=1)
    (event,) = saves_of(tmp_path)
    assert (event["snapshot"], event["decision"], event["step"]) == ("direct", "refused", 1)
    assert event["bytes"] == event["local_durable_s"] == 0


def test_who_commits_writes_the_hint_and_nobody_else(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would write over each other, and the trainer is behind the worker."""
    hints: list[str] = []
    monkeypatch.setattr(writer_session, "write_hint", lambda _, name, __: hints.append(name))
    runs.fit(tmp_path, max_epochs=1)
    assert not hints
    assert json.loads((tmp_path / DOT_DIR / "latest.json").read_text())["step"] == 8
    with pytest.warns(UserWarning, match="not enough host memory"):
        runs.fit(tmp_path / "direct", bt={"arena_memory": 10}, max_epochs=1)
    assert hints == [f"checkpoint-{step}" for step in range(1, 9)]


@pytest.mark.parametrize("overlap", ["skip", "latest"])
def test_the_last_save_of_a_run_is_there_with_every_policy(
    runs: ModuleType, names: Any, tmp_path: Path, overlap: str
) -> None:
    runs.fit(tmp_path, bt={"overlap": overlap})
    found = names(tmp_path)
    assert "checkpoint-1" in found
    decisions = {event["decision"] for event in saves_of(tmp_path)}
    assert decisions <= {"saved", "waited", "skipped", "replaced"}
    if overlap == "latest":
        assert "checkpoint-24" in found


KILLED = """
import os, signal, sys
import plugin_runs as runs
from bt_lightning import BTLightning
from lightning.pytorch.callbacks import ModelCheckpoint

root, stop = sys.argv[1], int(sys.argv[2]) or None
bt = BTLightning(dir=root)

def end():
    # the snapshot is complete in the arena, and the worker was told; nothing more is waited for
    saver = bt._session.writer.saves.saver
    saver.finish_copy()
    for future, _, _ in list(saver.open.copies.values()):
        future.result()
    os.kill(os.getpid(), signal.SIGKILL)

save = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
run = runs.fit(root, callbacks=[bt, save], make=lambda: runs.Net(stop, end), max_epochs=1)
print("first", run.first_step)
"""


def test_a_snapshot_that_was_complete_is_committed_though_the_trainer_is_killed(
    scripts: Any, tmp_path: Path
) -> None:
    """And the next run, started at once, waits for it and goes on from there."""
    scripts.run(KILLED, tmp_path / "root", 5, code=-signal.SIGKILL)
    done = scripts.run(KILLED, tmp_path / "root", 0)
    assert "first 5" in done.out


def test_a_fit_leaves_neither_watch_nor_hook_behind(runs: ModuleType, tmp_path: Path) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks)
    run = runs.fit(tmp_path, max_epochs=1)
    assert not [c for c in run.trainer.callbacks if isinstance(c, WeightChangeWatch)]
    assert len(_global_optimizer_pre_hooks) == before
    run = runs.fit(tmp_path / "other", make=lambda: runs.Net(3), max_epochs=1)
    assert run.stopped
    assert not [c for c in run.trainer.callbacks if isinstance(c, WeightChangeWatch)]
    assert len(_global_optimizer_pre_hooks) == before


def test_hooks_of_lightning_are_told_from_those_of_users() -> None:
    class Mine(L.LightningModule):
        def on_train_epoch_end(self) -> None: ...

    class Derived(ModelCheckpoint):
        pass

    assert overrides(Mine(), "on_train_epoch_end")
    assert not overrides(Mine(), "on_train_batch_end")
    assert not overrides(Derived(), "on_train_epoch_end")
    assert overrides(L.pytorch.callbacks.StochasticWeightAveraging(1e-2), "on_train_epoch_start")
    module = Mine()
    module.on_train_batch_end = lambda *_: None
    assert overrides(module, "on_train_batch_end")


def test_a_second_run_on_a_directory_that_is_in_use_is_refused(
    runs: ModuleType, tmp_path: Path
) -> None:
    """It would wait for ever to commit, behind a run that lives."""
    import fcntl
    from datetime import timedelta

    from bt_lightning.worker.commit_lock import commit_lock

    commit_lock(tmp_path).parent.mkdir()
    with commit_lock(tmp_path).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another run still commits"):
            runs.fit(tmp_path, bt={"drain_timeout": timedelta(seconds=0.1)})
    assert runs.fit(tmp_path, max_epochs=1).first_step == 0
