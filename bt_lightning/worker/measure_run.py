"""Looks at a run: what lies on its disk and in the store, what waits, how the store answers."""

from __future__ import annotations

import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.run_metrics import Place, PlaceFacts, RunFacts
from bt_lightning.store.retry import request_retries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manifest import Manifest
    from bt_lightning.worker.publisher_thread import PublisherThread
    from bt_lightning.worker_messages import WorkerConfig


class RunMeter:
    """Measures one run, by the worker that publishes; one thread calls it."""

    def __init__(self, config: WorkerConfig, publisher: PublisherThread) -> None:
        self._config = config
        self._root = Path(config.root)
        self._publisher = publisher
        self._stored: PlaceFacts | None = None
        """As of the last look at the store: it may not answer."""

    def forget(self) -> None:
        """Forget what the store holds: another worker writes to it."""
        self._stored = None

    def measure(self, *, training: bool) -> RunFacts:
        """The facts of this moment.

        Raises:
            CheckpointError, OSError: the directory cannot be read.
        """
        publisher, tasks = self._publisher, self._publisher.tasks
        listed = list_committed(self._root).found
        places: dict[Place, PlaceFacts] = {"disk": _place([one.manifest for one in listed])}
        if (stored := tasks.known_stored) is not None:
            self._stored = _place(stored)
        if self._stored is not None:
            places["store"] = self._stored
        waiting = [one.manifest.size for one in tasks.outbox()]
        return RunFacts(
            version=str(import_module("bt_lightning").__version__),  # a statement makes a circle
            at=time.time(),
            training=training,
            places=places,
            waiting=len(waiting),
            waiting_bytes=max(0, sum(waiting) - tasks.meter.done),
            sent_bytes=tasks.meter.sent,
            store_failing=publisher.reason is not None,
            store_refusing=publisher.permanent,
            has_store=self._config.store_url is not None,
            request_retries=request_retries.value,
            publish_failures=publisher.failures,
            disk_free=shutil.disk_usage(self._root).free,
            budget=self._config.budget,
        )


def _place(manifests: Sequence[Manifest]) -> PlaceFacts:
    own = of_newest_fit(manifests, lambda manifest: manifest)
    newest = max(own, key=lambda manifest: manifest.order, default=None)
    return PlaceFacts(
        count=len(manifests),
        size=sum(manifest.size for manifest in manifests),
        newest_at=None if newest is None else newest.created.timestamp(),
        newest_step=0 if newest is None else newest.step,
    )
