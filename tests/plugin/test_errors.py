"""What goes wrong behind the training is raised once, masks nothing, and loses nothing.

The names H1 to H7 are the holes of other checkpointing software that the reference lists.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
import warnings
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bt_lightning import (
    BTCheckpointIO,
    BTLightning,
    CheckpointCorruptError,
    DrainTimeoutError,
    UploadFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

EVERY = {"every_n_train_steps": 1, "save_top_k": -1}
MANIFEST, WEIGHTS = "bt_manifest.json", "model.safetensors"


def blocked(store: Path) -> None:
    """Make every later write to the store fail for good: a file stands where its folder was."""
    projects, until = store / "training_projects", time.monotonic() + 60
    while not list(projects.glob("*/jobs/*/rank-0/.bt_lightning-fits")):  # behind its lease
        assert time.monotonic() < until, "the worker did not begin"
        time.sleep(0.005)
    shutil.rmtree(projects)
    projects.write_text("in the way")


def unblocked(store: Path) -> None:
    (store / "training_projects").unlink()


def callback(**hooks: Any) -> Any:
    """A callback of the given functions, each called with the trainer."""
    from lightning.pytorch.callbacks import Callback

    def method(act: Any) -> Any:
        return lambda self, trainer, *args, **kwargs: act(trainer)

    return type("Hooks", (Callback,), {name: method(act) for name, act in hooks.items()})()


def ours(trainer: Any) -> BTLightning:
    return next(found for found in trainer.callbacks if isinstance(found, BTLightning))


def wait_for_worker(trainer: Any) -> None:
    """Wait for what becomes of the upload; whoever polls next hears of it."""
    session, until = ours(trainer)._session.writer, time.monotonic() + 60
    while not (session._failures or session._published):
        assert time.monotonic() < until, "the worker said nothing"
        session.process_events(1.0)


def committed(trainer: Any) -> None:
    """Wait until every save so far is committed."""
    ours(trainer)._session.writer.saves.saver.drain()


def save_once(root: Path, step: int = 3) -> Any:
    """Save after `step` steps and wait for the worker's word on it."""

    def act(trainer: Any) -> None:
        if trainer.global_step == step:
            trainer.save_checkpoint(root / f"checkpoint-{step}")
            wait_for_worker(trainer)

    return callback(on_train_batch_end=act)


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Own the directory's right to publish, as a worker of an earlier run that still drains."""
    (root / ".bt_lightning").mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / ".bt_lightning" / "worker.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def in_store(store: Path) -> Path:
    """The folder of the only job in `store`."""
    (job,) = store.glob("training_projects/*/jobs/*/rank-0")
    return job


def test_an_upload_that_fails_for_good_is_raised_once_at_the_next_hook(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    block = callback(on_train_start=lambda _: blocked(store))
    make = runs.Net
    with (
        pytest.warns(UserWarning, match="while ending the run") as caught,
        pytest.raises(UploadFailedError) as raised,
    ):
        runs.fit(
            root,
            callbacks=[block, save_once(root), BTLightning(dir=root, store=str(store))],
            make=make,
            enable_checkpointing=False,
        )
    message = str(raised.value)
    assert "publishing failed: " in message
    assert "training_projects" in message
    assert f"Checkpoints stay on disk in {root}" in message
    assert not any("publishing failed" in str(warning.message) for warning in caught)
    assert names(root) == {"checkpoint-3"}


def test_with_warn_the_failure_is_one_warning_and_training_goes_on(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    block = callback(on_train_start=lambda _: blocked(store))
    bt = BTLightning(dir=root, store=str(store), on_error="warn")
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 - all of them are looked at
        run = runs.fit(root, callbacks=[block, save_once(root), bt], enable_checkpointing=False)
    assert run.trainer.global_step == 24
    messages = [str(warning.message) for warning in caught]
    assert len([text for text in messages if "publishing failed" in text]) == 1
    waiting = [text for text in messages if "not everything reached the store" in text]
    assert len(waiting) == 1
    assert "checkpoint-3" in waiting[0]
    assert names(root) == {"checkpoint-3", "final-24"}


def test_one_cause_is_reported_once_over_many_checkpoints(runs: ModuleType, tmp_path: Path) -> None:
    """A store that refuses every checkpoint of a long run must not warn about each of them."""
    root, store = tmp_path / "root", tmp_path / "store"

    def save(trainer: Any) -> None:
        if trainer.global_step <= 4:
            trainer.save_checkpoint(root / f"checkpoint-{trainer.global_step}")
            if trainer.global_step == 1:
                wait_for_worker(trainer)
            else:
                ours(trainer)._session.writer._worker._conn.poll(1)

    hooks = callback(on_train_start=lambda _: blocked(store), on_train_batch_end=save)
    bt = BTLightning(dir=root, store=str(store), on_error="warn")
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 - all of them are looked at
        runs.fit(root, callbacks=[hooks, bt], enable_checkpointing=False, max_epochs=1)
    messages = [str(warning.message) for warning in caught]
    assert len([text for text in messages if "publishing failed" in text]) == 1, messages


def test_a_failure_that_a_retry_cured_is_never_raised(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """The store refuses the first checkpoint and takes the second: both arrive in the end."""
    root, store = tmp_path / "root", tmp_path / "store"
    bt = BTLightning(dir=root, store=str(store), on_error="warn")

    def save(trainer: Any) -> None:
        if trainer.global_step in {3, 6}:
            trainer.save_checkpoint(root / f"checkpoint-{trainer.global_step}")
            wait_for_worker(trainer)
            if trainer.global_step == 3:
                unblocked(store)

    hooks = callback(on_train_start=lambda _: blocked(store), on_train_batch_end=save)
    with pytest.warns(UserWarning, match="publishing failed") as caught:
        runs.fit(root, callbacks=[hooks, bt], enable_checkpointing=False, max_epochs=1)
    ours_of = [
        w for w in caught if "pytree" not in str(w.message) and "treespec" not in str(w.message)
    ]
    assert len(ours_of) == 1
    assert names(in_store(store)) == {"checkpoint-3", "checkpoint-6", "final-8"}


def test_a_drain_that_runs_out_of_time_names_what_waits_and_the_next_start_sends_it(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    options = {"save": {"save_top_k": 1}, "max_epochs": 1}
    bt = {"store": str(store)}
    with held(root), pytest.raises(DrainTimeoutError) as raised:
        runs.fit(root, bt={**bt, "drain_timeout": timedelta(seconds=0.3)}, **options)
    message = str(raised.value)
    assert "not everything reached the store within 0 s" in message
    assert "Waiting on disk: checkpoint-8. The next start" in message
    assert names(root) == {"checkpoint-8"}
    assert names(store) == set()
    runs.fit(root, bt=bt, **options)
    assert names(in_store(store)) == {"checkpoint-8"}


def test_the_trainings_own_exception_is_the_one_that_is_raised(
    runs: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    bt = {"store": str(tmp_path / "store"), "drain_timeout": timedelta(seconds=0.3)}
    with held(root), pytest.warns(UserWarning, match="Waiting on disk: checkpoint-2, checkpoint-1"):
        run = runs.fit(root, make=partial(runs.Net, 2), bt=bt, save=EVERY)
    assert run.stopped, "fit raised something else"


def test_an_interrupt_by_the_keyboard_publishes_what_is_committed(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    root, store = tmp_path / "root", tmp_path / "store"
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            runs.fit(
                root, make=partial(runs.Net, 3, interrupt), save=EVERY, bt={"store": str(store)}
            )
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert names(in_store(store)) == names(root) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_a_fit_that_fails_at_its_start_leaves_nothing_running(
    runs: ModuleType, tmp_path: Path
) -> None:
    """The guard in conftest looks for worker processes; the next fit must work as well."""

    class Failing(runs.Net):
        def configure_optimizers(self) -> Any:
            raise runs.StoppedError

    bt = {"store": str(tmp_path / "store")}
    assert runs.fit(tmp_path / "root", make=Failing, bt=bt).stopped
    assert runs.fit(tmp_path / "root", save=EVERY, max_epochs=1, bt=bt).first_step == 0


def test_a_killed_worker_is_started_again_and_publishes(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    root, store = tmp_path / "root", tmp_path / "store"

    def kill(trainer: Any) -> None:
        if trainer.global_step == 2:
            worker = ours(trainer)._session.writer._worker
            worker._process.kill()
            worker._process.join()

    runs.fit(
        root, callback(on_train_batch_end=kill), save=EVERY, max_epochs=1, bt={"store": str(store)}
    )
    assert names(in_store(store)) == {f"checkpoint-{step}" for step in range(1, 9)}


# H1, H3: a write that fails must fail the save


@pytest.mark.filterwarnings("ignore:while ending the run")  # of the save that came after it
def test_h3_a_directory_that_stops_taking_files_fails_the_save(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """Lightning's own IO returns without a file and without an error."""

    def spoil(trainer: Any) -> None:
        if trainer.global_step == 2:
            committed(trainer)
            tmp = tmp_path / ".bt_lightning" / "tmp"
            tmp.rmdir()
            tmp.write_text("no folder any more")

    with pytest.raises(OSError, match="a file stands where a directory should"):
        runs.fit(tmp_path, callback(on_train_batch_start=spoil), save=EVERY)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}


@pytest.mark.filterwarnings("ignore:while ending the run")  # of the save that came after it
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_h1_a_write_that_fails_half_way_fails_the_save_and_commits_nothing(
    runs: ModuleType, names: Any, tmp_path: Path, on_error: str
) -> None:
    """DCP's writer threads swallow the error and commit metadata of tensors that are not there."""
    import errno

    def full(trainer: Any) -> None:
        """From step 2 on the disk takes no file of more than 2,000 bytes of the worker's."""
        if trainer.global_step == 1:
            committed(trainer)
            worker = psutil.Process(ours(trainer)._session.writer.worker_pid)
            worker.rlimit(psutil.RLIMIT_FSIZE, (2000, -1))

    hook = callback(on_train_batch_start=full)
    with pytest.raises(OSError, match="checkpoint-2 was not saved: the disk refused") as raised:
        runs.fit(tmp_path, hook, save=EVERY, bt={"on_error": on_error})
    assert raised.value.errno == errno.EFBIG
    assert names(tmp_path) == {"checkpoint-1"}
    assert list((tmp_path / ".bt_lightning" / "tmp").iterdir()) == []


def test_h2_a_save_over_an_old_one_that_fails_leaves_the_old_one_whole(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DCP then loads the new bytes under the old metadata, without an error."""
    from bt_lightning.localdir import commit

    def refuse(*_: Any) -> None:
        raise OSError(5, "gone at the last moment")

    run = runs.fit(tmp_path, save={"filename": "best"}, max_epochs=1)
    before = BTCheckpointIO().load_checkpoint(tmp_path / "best")
    monkeypatch.setattr(commit, "publish_directory", refuse)
    run.trainer.strategy.checkpoint_io.bt_io.writer._warned = True
    changed = {**before, "global_step": 99}
    with pytest.raises(OSError, match="gone at the last moment"):
        BTCheckpointIO().save_checkpoint(changed, tmp_path / "best")
    after = BTCheckpointIO().load_checkpoint(tmp_path / "best")
    assert after["global_step"] == 8
    assert runs.digest(after["state_dict"]) == runs.digest(before["state_dict"])


def test_h4_after_the_first_save_there_is_a_checkpoint_at_every_moment(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """Lightning's asynchronous IO deletes the old one while the new one is not written yet."""
    root, store = tmp_path / "root", tmp_path / "store"
    seen: list[tuple[set[str], set[str]]] = []

    def look(trainer: Any) -> None:
        local, stored = names(root), names(store)
        if seen and seen[-1][0]:
            assert local, "nothing on disk"
        if seen and seen[-1][1]:
            assert stored, "nothing in the store"
        seen.append((local, stored))

    hooks = callback(on_train_batch_start=look)
    save = {"every_n_train_steps": 1, "save_top_k": 1}
    runs.fit(root, hooks, save=save, bt={"store": str(store)})
    assert names(root) == names(in_store(store)) == {"checkpoint-24"}


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, "optimizer.safetensors", "trainer.json"])
def test_h6_one_flipped_byte_is_never_loaded(runs: ModuleType, tmp_path: Path, file: str) -> None:
    """torch.load and DCP load other numbers without a word."""
    runs.fit(tmp_path, save={"save_top_k": 1}, max_epochs=1)
    path = tmp_path / "checkpoint-8"
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint-8.* is damaged"):
        runs.fit(tmp_path, ckpt_path=str(path))
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint-8.* is damaged"):
        runs.Net.load_from_checkpoint(path)


def test_h7_a_failed_upload_does_not_cost_the_only_copy(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """litmodels warns about the upload and then deletes the file all the same."""
    root, store = tmp_path / "root", tmp_path / "store"
    block = callback(on_train_start=lambda _: blocked(store))
    save = {"every_n_train_steps": 2, "save_top_k": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = runs.fit(root, block, save=save, bt={"store": str(store), "on_error": "warn"})
    assert run.trainer.global_step == 24
    assert names(root) == {"checkpoint-24"}
    assert BTCheckpointIO().load_checkpoint(root / "checkpoint-24")["global_step"] == 24
    unblocked(store)
    runs.fit(root, save=save, bt={"store": str(store)})
    assert names(in_store(store)) == {"checkpoint-24"}
