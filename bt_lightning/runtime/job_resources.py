"""What a runner holds of its job while it runs: store, lease, record, and standby worker."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import Self

from bt_lightning.errors import (
    CheckpointCorruptError,
    DrainTimeoutError,
    StoreTransientError,
    WorkerDiedError,
)
from bt_lightning.job_record import JobRecord
from bt_lightning.localdir.local_checkpoints import list_committed
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.path_layout import job_prefix
from bt_lightning.runtime.job_lock import take_job
from bt_lightning.runtime.job_record_writer import JobRecordWriter, read_local, utc_now
from bt_lightning.runtime.load_earlier_checkpoints import load_references, resolve, strangers
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
    from pathlib import Path

    from bt_lightning.job_record import Status, Sync
    from bt_lightning.manifest import Manifest
    from bt_lightning.runtime.command_process import Child
    from bt_lightning.runtime.job_spec import JobSpec
    from bt_lightning.runtime.load_earlier_checkpoints import Progress
    from bt_lightning.store.interface import Store

_TRIES: Final = 4
_ANSWER_S: Final = 15.0
"""For the first answer of a store, the tries included; then training begins without it."""
_RECORD_S: Final = 10.0
_SPARE_S: Final = 2.0
"""Of the grace that a platform gives, for the last record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalHearing:
    """Who is told what: lines for people, never on the command's own output."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress


class JobResources:
    """The job of one node, from `open` to `finish`; a context that lets go of what it holds."""

    def __init__(self, spec: JobSpec, root: Path | None, hearing: SignalHearing) -> None:
        self._spec = spec
        self._root = root
        self._hearing = hearing
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
        )
        self._before: JobRecord | None = None
        self._keeper: JobRecordWriter | None = None

    @property
    def keeper(self) -> JobRecordWriter:
        """Of the record; there is one once the job is open."""
        assert self._keeper is not None
        return self._keeper

    @property
    def attempts(self) -> int:
        """Number of the next attempt: those of earlier runs of this job count."""
        return max((one.number + 1 for one in self._record.attempts), default=0)

    def open(self) -> None:
        """Open the store and take the job; without an answer of the store, go on without it."""
        spec = self._spec
        if self._root is not None and (before := read_local(self._root)) is not None:
            self._goes_on(before)
        if spec.store_url is not None:
            self._store = RetryingStore(open_store(spec.store_url), tries=_TRIES)
            try:
                self._take(self._store)
            except StoreTransientError as error:
                if spec.references:
                    raise
                self._hearing.warn(
                    f"the store does not answer, and the job begins without it: {error}. Its"
                    " checkpoints stay on the disk, and are sent when it does"
                )
        writing = None if spec.store_url is None else open_store(spec.store_url)
        self._keeper = JobRecordWriter(self._record, self._root, writing, self._prefix)
        self._closing.callback(self._close_keeper)

    def _goes_on(self, before: JobRecord) -> None:
        """This run continues the job of an earlier one; of two records the one that knows more."""
        if self._before is None or before.knows_more_than(self._before):
            self._before = before
            known = (before.created_at, before.attempts)
            self._record = replace(self._record, created_at=known[0], attempts=known[1])

    def _take(self, store: Store) -> None:
        try:
            before = within_store_timeout(
                _ANSWER_S, lambda: read_record(store, self._prefix), store.name
            )
        except CheckpointCorruptError as error:
            self._hearing.warn(f"{error}: it is begun anew")
            before = None
        if self._root is not None:
            lease = take_job(store, self._prefix, publisher_id_of(self._root), self._hearing.warn)
            self._closing.callback(lease.release)
        if before is not None:
            self._goes_on(before)

    def load_references(self) -> None:
        """Bring what the job loads to the disk, before anything of it runs."""
        spec, said = self._spec, self._hearing
        if spec.load_dir is None or self._store is None:
            return
        loaded = []
        for reference in spec.references:
            found = resolve(self._store, reference, spec.project, spec.job_id, spec.nodes.rank)
            loaded += load_references(self._store, found, spec.load_dir, said.progress)
        for one in loaded:
            said.say(f"loaded {one.checkpoint_id} of the job {one.job} into {one.path}")
        for path in strangers(spec.load_dir, loaded):
            said.warn(
                f"{path} lies in the load directory as well, and a run resumes from the newest"
                " checkpoint there: delete it if that is not meant"
            )

    def start_worker(self, drain_s: float, settings: Settings) -> None:
        """Start the process that sends what training processes leave, and any other file."""
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
            )
        )
        self._closing.callback(self._worker.stop)
        self._worker.start()
        self._worker.begin(frozenset())

    def tick(self) -> None:
        """Hear what the worker has to say; a failure is said once."""
        if self._worker is None:
            return
        try:
            for event in self._worker.poll():
                if isinstance(event, WorkFailed):
                    self._failed(f"{event.what} failed: {event.error}")
                elif isinstance(event, Published):
                    self._failures.clear()
        except WorkerDiedError as error:
            self._failed(str(error))

    def _failed(self, text: str) -> None:
        if text not in self._failures:
            self._failures.add(text)
            self._hearing.warn(f"{text}. What lies on the disk is sent when it works")

    def finish(self, outcome: Outcome, ended: Exit, child: Child, drain_s: float) -> int:
        """Wait for the store, write the last record, and say how the job ended."""
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
        newest = None if self._root is None else newest_of(self._root)
        self.keeper.update(
            status=status,
            checkpoint_sync_status=sync,
            ended_at=utc_now(),
            newest_checkpoint=newest[0] if newest else None,
            newest_step=newest[1] if newest else None,
            waiting=waiting,
        )
        said = f"job {self._spec.job_id}: {status}"
        at = f", newest checkpoint {newest[0]} (step {newest[1]})" if newest else ""
        self._hearing.say(said + at)
        if error is not None:
            self._hearing.warn(str(error))
            return code or error.exit_code
        return code

    def _drain(
        self, child: Child, drain_s: float
    ) -> tuple[tuple[str, ...], DrainTimeoutError | None]:
        """Wait until all that is on the disk is in the store; else what is not, and why."""
        if self._worker is None:
            return (), None

        def left_s() -> float:
            return -math.inf if child.impatient else child.left_s - _SPARE_S

        began = time.monotonic()
        try:
            result = self._worker.drained(min(drain_s, max(0.0, left_s())), left_s)
        except WorkerDiedError as error:
            return (), DrainTimeoutError(f"not everything reached the store: {error}")
        if result is not None and not result.waiting:
            return (), None
        waiting = result.waiting if result is not None else ()
        return waiting, drain_report(result, time.monotonic() - began)

    def _close_keeper(self) -> None:
        if not self.keeper.close(_RECORD_S):
            self._hearing.warn("the last record of the job did not reach the store")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._closing:
            if error is not None and self._keeper is not None:
                stopped = isinstance(error, SystemExit | KeyboardInterrupt)
                changes: dict[str, Any] = {"status": "STOPPED" if stopped else "FAILED"}
                if self._worker is None:
                    changes |= self._unchanged()
                self.keeper.update(ended_at=utc_now(), **changes)

    def _unchanged(self) -> dict[str, Any]:
        """What the record says of the store where nothing ran: what it said before.

        Of a job that is new, everything is there: it has nothing.
        """
        if self._spec.store_url is None or self._root is None:
            return {"checkpoint_sync_status": None}
        before = self._before
        if before is None or before.checkpoint_sync_status is None:
            empty = newest_of(self._root) is None
            return {"checkpoint_sync_status": "COMPLETED" if empty else "SYNCING"}
        said = {"checkpoint_sync_status": before.checkpoint_sync_status, "waiting": before.waiting}
        return {
            **said,
            "newest_checkpoint": before.newest_checkpoint,
            "newest_step": before.newest_step,
        }


def newest_of(root: Path) -> tuple[str, int] | None:
    """Id and step of the newest checkpoint of a job, on its disk or, if that was full, away."""
    found = [(m.order, m.checkpoint_id, m.step) for m in _manifests(root)]
    away = newest_in_store(root)
    if away is not None:
        found.append((away.order, away.checkpoint, away.step))
    return max(found)[1:] if found else None


def _manifests(root: Path) -> Iterator[Manifest]:
    return (found.manifest for found in list_committed(root)[0])


def settings_of(spec: JobSpec, inherited: Mapping[str, str]) -> Settings:
    """What the command's variables say of uploads: which other files, and how fast.

    Raises:
        InvalidSettingError: they cannot be used.
    """
    return Settings.from_environ({**inherited, **spec.variables})
