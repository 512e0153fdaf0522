"""Starts the publisher thread that a worker's configuration asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.store.interface import redact
from bt_lightning.store.retry import LateStore, RetryingStore
from bt_lightning.store.secrets import known_secrets, log_secrets
from bt_lightning.worker.publish_job_files import JobFilePublisher
from bt_lightning.worker.publisher_lock import PublisherLock, stand_by
from bt_lightning.worker.publisher_tasks_parts import ShardedTasks
from bt_lightning.worker.publisher_thread import PublisherThread
from bt_lightning.worker.send_logs import LogSender

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bt_lightning.store.interface import Store
    from bt_lightning.worker.disk_removals import DiskRemovals
    from bt_lightning.worker_messages import Published, WorkerConfig, WorkFailed


def start_publisher(
    config: WorkerConfig,
    open_store: Callable[[], Store],
    removals: DiskRemovals,
    helped: Collection[str],
    report: Callable[[Published | WorkFailed | None], None],
) -> PublisherThread:
    """Start the thread; called once, by the main loop of the worker of rank 0."""
    root, url, standby = Path(config.root), config.store_url, config.standby
    publisher_lock = PublisherLock(root, standby=standby)
    if standby and url:
        stand_by(root, url, config.prefix)
    tasks = ShardedTasks(
        root,
        RetryingStore(LateStore(open_store)) if url else None,
        config.prefix,
        (),
        check=publisher_lock.check,
        files=_job_files(config, root) if url else None,
        removals=removals,
    )
    tasks.helped = helped
    if url:
        tasks.logs = LogSender(root, LateStore(open_store), config.prefix, _secrets(config))
    return PublisherThread(root, tasks, publisher_lock, report, standby=standby)


def _secrets(config: WorkerConfig) -> frozenset[str]:
    """What must not be in a log that is sent."""
    of_store = known_secrets(config.store_url or "", config.storage_options, os.environ)
    return of_store | log_secrets(os.environ)


def _job_files(config: WorkerConfig, root: Path) -> JobFilePublisher | None:
    destination = f"{redact(config.store_url or '')}\n{config.prefix}"
    patterns = config.files
    return JobFilePublisher(root, patterns, destination) if patterns is not None else None
