"""The worker of a session, and who publishes what is committed behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.session.worker_config import worker_config
from bt_lightning.worker.publisher_lock import stands_by
from bt_lightning.worker.worker_handle import Worker

if TYPE_CHECKING:
    from bt_lightning.session.session_config import SessionConfig


def publish_late(config: SessionConfig, pinned: frozenset[str]) -> None:
    """Publish checkpoints that were committed after a fit, by `trainer.save_checkpoint`.

    Raises:
        DrainTimeoutError, UploadFailedError: it is on disk, and the next start publishes it.
    """
    if config.store_url is None or runner_publishes(config):
        return
    worker = started_worker(replace(config, files=None))
    try:
        worker.begin(pinned)
        worker.drain(config.drain_s)
    finally:
        worker.stop()


def runner_publishes(config: SessionConfig) -> bool:
    """Whether `bt-lightning run` publishes what is left on the disk, and waits for it."""
    url, prefix = config.store_url, config.job.prefix
    return url is not None and stands_by(config.root, url, prefix)


def started_worker(config: SessionConfig) -> Worker:
    """A worker for the directory and job of a session; whoever gets it ends it."""
    worker = Worker(worker_config(config, config.job.prefix))
    worker.start()
    return worker
