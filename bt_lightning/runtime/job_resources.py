"""What a runner holds while its job runs: store, lease, record and standby worker."""

from __future__ import annotations

import contextlib
import math
import socket
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import Self

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.errors import (
    CheckpointCorruptError,
    DrainTimeoutError,
    StoreTransientError,
    WorkerDiedError,
)
from bt_lightning.job_record import JobRecord
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.job_record_file import read_local
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.path_layout import job_prefix
from bt_lightning.runtime.job_lock import take_job
from bt_lightning.runtime.job_record_writer import JobRecordWriter, utc_now
from bt_lightning.runtime.load_earlier_checkpoints import (
    load_references,
    other_checkpoints,
    resolve,
)
from bt_lightning.runtime.restart_policy import Exit, Outcome, final_code
from bt_lightning.runtime.store_timeout import within_store_timeout
from bt_lightning.settings import Settings
from bt_lightning.store.catalog.job_records import read_record
from bt_lightning.store.open_store import open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.worker.drain_report import drain_report
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import Published, WorkerConfig, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bt_lightning.job_record import Status, Sync
    from bt_lightning.manifest import Manifest
    from bt_lightning.runtime.command_process import Child
    from bt_lightning.runtime.job_spec_and_environment import JobSpec
    from bt_lightning.runtime.load_earlier_checkpoints import Progress
    from bt_lightning.runtime.stop_requests import StopRequests
    from bt_lightning.store.interface import Store

_TRIES: Final = 4
_STORE_TIMEOUT_S: Final = 15.0
"""Seconds for the store's first answer, all tries; then training begins without it."""
_RECORD_TIMEOUT_S: Final = 10.0
_RESERVED_S: Final = 2.0
"""Seconds of the platform's grace that are kept for the last record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReporter:
    """Callbacks for lines to people, which never go to the command's own output."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress


class JobResources:
    """The resources of one node's job, from `open` to `finish`; a context manager.

    The runner's main thread calls it.
    """

    def __init__(self, spec: JobSpec, root: Path | None, reporter: JobReporter) -> None:
        self._spec = spec
        self._root = root
        self._reporter = reporter
        self._closing = contextlib.ExitStack()
        self._prefix = job_prefix(spec.project, spec.job_id, spec.nodes.rank)
        self._store: Store | None = None
        self._worker: Worker | None = None
        self._failures: set[str] = set()
        now = utc_now()
        self._record = JobRecord(
            project=spec.project,
            job_id=spec.job_id,
            job_name=spec.job_name,
            node_rank=spec.nodes.rank,
            group_size=spec.nodes.size,
            host=socket.gethostname(),
            status="CREATED",
            checkpoint_sync_status=None if spec.store_url is None else "SYNCING",
            created_at=now,
            updated_at=now,
            run=uuid.uuid4().hex,
            arguments=spec.arguments,
            withheld=spec.withheld,
            directory=str(Path.cwd()),
            checkpoint_dir=str(root or ""),
        )
        self._before: JobRecord | None = None
        self._record_writer: JobRecordWriter | None = None

    @property
    def record_writer(self) -> JobRecordWriter:
        """The writer of the record; available once the job is open."""
        assert self._record_writer is not None
        return self._record_writer

    @property
    def run(self) -> str:
        """Id of this run of the job: requests to stop name it."""
        return self._record.run

    def note(self, event: str, **facts: object) -> None:
        """Add an event to those of the directory, if it takes one."""
        if self._root is not None:
            with contextlib.suppress(OSError):  # a lost event does no harm
                note(self._root, event, **facts)

    def watch(self, requests: StopRequests) -> None:
        """Let `requests` look where this job is, on the disk and in the store."""
        if self._root is not None:
            requests.watch_directory(self._root)
        if self._spec.store_url is not None:
            requests.watch_store(open_store(self._spec.store_url), self._prefix)

    @property
    def attempts(self) -> int:
        """Number of the next attempt, counted over all runs of this job."""
        return max((one.number + 1 for one in self._record.attempts), default=0)

    def open(self) -> None:
        """Open the store and take the job's lease; go on without a store that does not answer."""
        spec = self._spec
        if self._root is not None and (before := read_local(self._root)) is not None:
            self._continue_record(before)
        if spec.store_url is not None:
            self._store = RetryingStore(open_store(spec.store_url), tries=_TRIES)
            try:
                self._take_job(self._store)
            except StoreTransientError as error:
                if spec.references:
                    raise
                self._reporter.warn(
                    f"the store does not answer, and the job begins without it: {error}. Its"
                    " checkpoints stay on the disk, and are sent when it does"
                )
        record_store = None if spec.store_url is None else open_store(spec.store_url)
        self._record_writer = JobRecordWriter(self._record, self._root, record_store, self._prefix)
        self._closing.callback(self._close_record)

    def _continue_record(self, before: JobRecord) -> None:
        """Continue the record of an earlier run; of two records take the more recent."""
        if self._before is None or before.knows_more_than(self._before):
            self._before = before
            known = (before.created_at, before.attempts)
            self._record = replace(self._record, created_at=known[0], attempts=known[1])

    def _take_job(self, store: Store) -> None:
        try:
            before = within_store_timeout(
                _STORE_TIMEOUT_S, lambda: read_record(store, self._prefix), store.name
            )
        except CheckpointCorruptError as error:
            self._reporter.warn(f"{error}: a new record is begun")
            before = None
        if self._root is not None:
            lease = take_job(store, self._prefix, publisher_id_of(self._root), self._reporter.warn)
            self._closing.callback(lease.release)
        if before is not None:
            self._continue_record(before)

    def load_references(self) -> None:
        """Download the checkpoints that the job loads, before its command runs."""
        spec, reporter = self._spec, self._reporter
        if spec.load_dir is None or self._store is None:
            return
        loaded = []
        for reference in spec.references:
            found = resolve(self._store, reference, spec.project, spec.job_id, spec.nodes.rank)
            loaded += load_references(self._store, found, spec.load_dir, reporter.progress)
        for one in loaded:
            reporter.say(f"loaded {one.checkpoint_id} of the job {one.job} into {one.path}")
        for path in other_checkpoints(spec.load_dir, loaded):
            reporter.warn(
                f"{path} lies in the load directory as well, and a run resumes from the newest"
                " checkpoint there: delete it if that is not meant"
            )

    def start_worker(self, drain_s: float, settings: Settings) -> None:
        """Start the standby worker: it publishes what training processes leave, and job files."""
        spec = self._spec
        if self._root is None or spec.store_url is None:
            return
        self._worker = Worker(
            WorkerConfig(
                root=str(self._root),
                store_url=spec.store_url,
                prefix=self._prefix,
                drain_s=drain_s,
                standby=True,
                files=settings.files,
                upload_bytes_s=settings.upload_mb_s and settings.upload_mb_s * 1e6,
                metrics=settings.metrics,
            )
        )
        self._closing.callback(self._worker.stop)
        self._worker.start()
        self._worker.begin(frozenset())

    def tick(self) -> None:
        """Report the worker's failures, each once; called at least every second."""
        if self._worker is None:
            return
        try:
            for event in self._worker.poll():
                if isinstance(event, WorkFailed) and event.of_a_file:
                    self._reporter.warn(event.error)
                elif isinstance(event, WorkFailed):
                    self._report_failure(f"{event.what} failed: {event.error}")
                elif isinstance(event, Published):
                    self._failures.clear()
        except WorkerDiedError as error:
            self._report_failure(str(error))

    def _report_failure(self, text: str) -> None:
        if text not in self._failures:
            self._failures.add(text)
            self._reporter.warn(f"{text}. Checkpoints on the disk are uploaded once it works")

    def finish(self, outcome: Outcome, ended: Exit, child: Child, drain_s: float) -> int:
        """Drain, write the last record, and report how the job ended; return the exit code."""
        waiting, error = self._drain(child, drain_s)
        code = final_code(outcome, ended, child.stopped_by)
        status: Status = "FAILED"
        if outcome == "stopped":
            status = "STOPPED"
        elif outcome == "done" and error is None:
            status = "COMPLETED"
        sync: Sync | None = None
        if self._worker is not None:
            sync = "SYNCING" if error is not None else "COMPLETED"
        newest = None if self._root is None else newest_checkpoint(self._root)
        self.record_writer.update(
            status=status,
            checkpoint_sync_status=sync,
            ended_at=utc_now(),
            newest_checkpoint=newest[0] if newest else None,
            newest_step=newest[1] if newest else None,
            waiting=waiting,
        )
        said = f"job {self._spec.job_id}: {status}"
        at = f", newest checkpoint {newest[0]} (step {newest[1]})" if newest else ""
        self._reporter.say(said + at)
        if error is not None:
            self._reporter.warn(str(error))
            return code or error.exit_code
        return code

    def _drain(
        self, child: Child, drain_s: float
    ) -> tuple[tuple[str, ...], DrainTimeoutError | None]:
        """Wait until all that is on the disk is in the store; return what is not, and why."""
        if self._worker is None:
            return (), None

        def left_s() -> float:
            return -math.inf if child.impatient else child.left_s - _RESERVED_S

        began = time.monotonic()
        try:
            result = self._worker.drained(min(drain_s, max(0.0, left_s())), left_s)
        except WorkerDiedError as error:
            return (), DrainTimeoutError(f"not everything reached the store: {error}")
        self.tick()
        if result is not None and not result.waiting:
            return (), None
        waiting = result.waiting if result is not None else ()
        return waiting, drain_report(result, time.monotonic() - began)

    def _close_record(self) -> None:
        if not self.record_writer.close(_RECORD_TIMEOUT_S):
            self._reporter.warn("the last record of the job did not reach the store")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._closing:
            if error is not None and self._record_writer is not None:
                stopped = isinstance(error, SystemExit | KeyboardInterrupt)
                changes: dict[str, Any] = {"status": "STOPPED" if stopped else "FAILED"}
                if self._worker is None:
                    changes |= self._unchanged_fields()
                self.record_writer.update(ended_at=utc_now(), **changes)

    def _unchanged_fields(self) -> dict[str, Any]:
        """The record's fields about the store if nothing ran: those of the earlier record.

        A new job without checkpoints counts as completely uploaded.
        """
        if self._spec.store_url is None or self._root is None:
            return {"checkpoint_sync_status": None}
        before = self._before
        if before is None or before.checkpoint_sync_status is None:
            empty = newest_checkpoint(self._root) is None
            return {"checkpoint_sync_status": "COMPLETED" if empty else "SYNCING"}
        said = {"checkpoint_sync_status": before.checkpoint_sync_status, "waiting": before.waiting}
        return {
            **said,
            "newest_checkpoint": before.newest_checkpoint,
            "newest_step": before.newest_step,
        }


def newest_checkpoint(root: Path) -> tuple[str, int] | None:
    """Id and step of the newest checkpoint of a job, on its disk or only in the store."""
    manifests = list(_manifests(root))
    newest = of_newest_fit(manifests, lambda manifest: manifest)
    found = [(m.order, m.checkpoint_id, m.step) for m in newest]
    stored = newest_in_store(root)
    if stored is not None and len(newest) == len(manifests):  # of several, it does not say whose
        found.append((stored.order, stored.checkpoint, stored.step))
    return max(found)[1:] if found else None


def _manifests(root: Path) -> Iterator[Manifest]:
    return (found.manifest for found in list_committed(root)[0])


def upload_settings(spec: JobSpec, inherited: Mapping[str, str]) -> Settings:
    """The settings of uploads (which job files, how fast) from the command's environment.

    Raises:
        InvalidSettingError: a variable cannot be used.
    """
    return Settings.from_environ({**inherited, **spec.variables})
