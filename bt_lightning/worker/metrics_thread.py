"""The worker's thread that writes the metrics of its directory for Prometheus.

It looks each second whether an event was logged, by any process, and writes anew then, else every
15 s. Of several workers of a directory the one that publishes writes. Nothing waits for it, and
what it cannot do is logged once: a training does not end for its metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.event_tail import EventTail, events_size
from bt_lightning.localdir.small_files import replace_small
from bt_lightning.path_layout import node_of
from bt_lightning.prometheus_text import prometheus_text
from bt_lightning.run_metrics import EventCounts, run_samples
from bt_lightning.worker.measure_run import RunMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.metrics_target import MetricsTarget
    from bt_lightning.worker.metrics_server import MetricsServer
    from bt_lightning.worker.publisher_thread import PublisherThread
    from bt_lightning.worker_messages import WorkerConfig

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0
"""Longest time between two writes, in seconds."""
_LOOK_S: Final = 1.0
_LEAVE_S: Final = 2.0


class MetricsThread:
    """Writes the metrics of `config.root` until `leave`."""

    def __init__(
        self, config: WorkerConfig, publisher: PublisherThread, orphaned: Callable[[], bool]
    ) -> None:
        """Start the thread; `orphaned` is whether the training process is gone."""
        self._config = config
        self._root = Path(config.root)
        self._publisher = publisher
        self._orphaned = orphaned
        self._tail, self._counts = EventTail(self._root), EventCounts()
        self._meter = RunMeter(config, publisher)
        self._server: MetricsServer | None = None
        self._file = metrics_file(config.metrics, config.prefix)
        self._troubles: set[str] = set()
        self._seen: tuple[int, int] | None = None
        self._next = 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning metrics")
        self._thread.start()

    def leave(self) -> None:
        """Write a last time, and stop; waits 2 s at most, as the disk may hang."""
        self._left.set()
        self._thread.join(_LEAVE_S)

    def _run(self) -> None:
        while not self._left.wait(_LOOK_S):
            if self._publisher.owns:
                self._look()
            else:  # another worker of the directory writes
                self._meter.forget()
                self._close_port()
        if self._publisher.owns:
            self._write(training=None if self._config.standby else False)
        self._close_port()
        self._tail.close()

    def _look(self) -> None:
        seen = events_size(self._root)
        if seen != self._seen or time.monotonic() >= self._next:
            self._seen, self._next = seen, time.monotonic() + EVERY_S
            self._write(training=None if self._config.standby else not self._orphaned())

    def _write(self, *, training: bool | None) -> None:
        """Measure, and pass on; `training` None: the events say it."""
        try:
            for event in self._tail.read():
                self._counts.add(event)
            training = self._counts.training if training is None else training
            facts = self._meter.measure(training=training)
            text = prometheus_text(run_samples(facts, self._counts), self._labels())
        except (CheckpointError, OSError) as error:
            self._complain(f"the metrics cannot be measured: {error}")
            return
        except Exception as error:  # noqa: BLE001 - a fault of ours would end worker and training
            self._complain(f"the metrics cannot be measured: {error!r}", of_ours=True)
            return
        if self._file is not None:
            try:
                replace_small(self._file, text.encode(), durable=False)
            except (CheckpointError, OSError) as error:
                self._complain(f"BT_METRICS_FILE: {self._file} cannot be written: {error}")
        if self._config.metrics.address is not None:
            self._serve(self._config.metrics.address, text)

    def _serve(self, address: tuple[str, int], text: str) -> None:
        if self._server is None:
            from bt_lightning.worker.metrics_server import MetricsServer

            try:
                self._server = MetricsServer(address)
            except OSError as error:
                host, port = address
                self._complain(f"BT_METRICS_PORT: {host}:{port} cannot be listened on: {error}")
                return
        self._server.text = text

    def _close_port(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _labels(self) -> dict[str, str]:
        named = node_of(self._config.prefix)
        project, job, node = named if named is not None else ("", self._config.prefix, 0)
        return {"project": project, "job_id": job, "node": str(node)}

    def _complain(self, text: str, *, of_ours: bool = False) -> None:
        if text not in self._troubles:
            self._troubles.add(text)
            log.warning("%s", text, exc_info=of_ours)


def metrics_file(target: MetricsTarget, prefix: str) -> Path | None:
    """The file to write; in a folder, one of the job's own, whose part of a store is `prefix`."""
    if target.file is None:
        return None
    path = Path(target.file).expanduser().absolute()
    if not (target.file.endswith("/") or path.is_dir()):
        return path
    name = prefix.removeprefix("training_projects/").replace("/", "-")
    return path / f"bt_lightning-{name}.prom"
