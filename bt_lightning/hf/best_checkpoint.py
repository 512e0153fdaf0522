"""The best checkpoint at the end (`load_best_model_at_end`): it is on the disk, and committed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.hf.patched_trainer import own_method
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.session.checkpoint_paths import is_committed
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from bt_lightning.session.running_session import RunningSession


def load_best(trainer: Any, run: RunningSession) -> None:
    """Every rank, in place of `_load_best_model`: load it when it is surely there.

    The Trainer itself says in a log line that it found none, and goes on with the last weights.

    Raises:
        CheckpointNotFoundError: it is neither on the disk nor in the store.
        CheckpointCorruptError: it is damaged.
        DirectoryUnusableError, UploadFailedError: it could not be saved.
    """
    path = Path(trainer.state.best_model_checkpoint)
    run.ranks.from_slow_zero(lambda: _make_local(path, run))
    own_method(trainer, "_load_best_model")()


def bring_best(path: Path, run: RunningSession) -> None:
    """Rank 0, before training: have the best checkpoint until here on the disk, if there is one."""
    writer = run.session.writer
    if writer is not None and not path.is_dir():
        writer.bring(path.relative_to(run.root).as_posix())


def wait_until_committed(run: RunningSession) -> None:
    """Rank that writes: wait until all saves are committed; raise what failed."""
    if run.session.writer is not None:
        run.session.writer.wait_for_saves(unlimited)
        run.session.poll()


def _make_local(path: Path, run: RunningSession) -> None:
    """Rank 0: wait until it is committed, or bring it from the store; verify it."""
    wait_until_committed(run)
    bring_best(path, run)
    if not path.is_dir():
        msg = f"the best checkpoint, {path}, is neither on the disk nor in the store"
        raise CheckpointNotFoundError(msg)
    if is_committed(path):
        FirstRead().verify(path)
