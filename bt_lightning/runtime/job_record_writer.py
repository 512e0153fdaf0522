"""A background writer of the job's record, to the disk and to the store; the job never waits."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import StoreError
from bt_lightning.localdir.job_record_file import write_local
from bt_lightning.store.catalog.job_records import write_record

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.job_record import Attempt, JobRecord
    from bt_lightning.store.interface import Store

_HEARTBEAT_S: Final = 60.0
_RETRY_S: Final = 10.0


def utc_now() -> str:
    """The present time in the form of records and manifests: ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat()


class JobRecordWriter:
    """Writes the newest state of the record on a thread of its own, and retries the store.

    Checkpoints do not depend on the record. The runner's main thread calls the methods.
    """

    def __init__(
        self, record: JobRecord, root: Path | None, store: Store | None, prefix: str
    ) -> None:
        self._record = record
        self._root = root
        self._store = store
        self._prefix = prefix
        self._changed = threading.Condition()
        self._version = 1
        self._closing = False
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning record")
        self._thread.start()

    @property
    def record(self) -> JobRecord:
        """The present record."""
        return self._record

    def update(self, **changes: Any) -> None:
        """Change fields of the record; main thread only."""
        with self._changed:
            self._record = replace(self._record, updated_at=utc_now(), **changes)
            self._version += 1
            self._changed.notify()

    def began(self, attempt: Attempt) -> None:
        """Add an attempt that has begun."""
        self.update(attempts=(*self._record.attempts, attempt), status="RUNNING")

    def ended(self, **facts: Any) -> None:
        """Set the end of the last attempt, and the fields in `facts`."""
        *before, last = self._record.attempts
        self.update(attempts=(*before, replace(last, ended_at=utc_now(), **facts)))

    def close(self, limit_s: float) -> bool:
        """Write the last state; return whether the store has it within `limit_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        return self._written.wait(limit_s)

    def _run(self) -> None:
        written_version, wait_s = 0, 0.0
        while True:
            with self._changed:
                if self._version == written_version and not self._closing:
                    if not self._changed.wait(_HEARTBEAT_S) and not self._record.over:
                        self._record = replace(self._record, updated_at=utc_now())
                        self._version += 1
                elif wait_s:
                    self._changed.wait(wait_s)
                record, version, closing = self._record, self._version, self._closing
            if version != written_version:
                wait_s = 0.0 if self._write(record) else _RETRY_S
                written_version = written_version if wait_s else version
            if closing and version == written_version:
                self._written.set()
                return

    def _write(self, record: JobRecord) -> bool:
        if self._root is not None:
            with contextlib.suppress(OSError):  # a full disk, which the checkpoints report
                write_local(self._root, record)
        if self._store is None:
            return True
        try:
            write_record(self._store, self._prefix, record)
        except StoreError:
            return False
        return True
