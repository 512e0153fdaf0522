"""Locks that let at most one runner have a job: its directory here, a lease in the store."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import JobRunningError, LeaseHeldError
from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.path_layout import DOT_DIR, run_folder
from bt_lightning.store.lease import EXPIRES_S, Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.store.interface import Store

_NAME: Final = "run.lock"
_MAX_BYTES: Final = 200
_POLL_S: Final = 5.0
_SPARE_S: Final = 15.0


def lock_directory(root: Path, job_id: str) -> int:
    """Lock `root` for the job; return the descriptor of the lock, for its command to inherit.

    The kernel drops the lock with the last process that has the descriptor, also by SIGKILL: a
    training process that outlives its runner keeps a second run out.

    Raises:
        JobRunningError: another run has it.
        OSError: the disk refused.
    """
    path = root / DOT_DIR / _NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)
    if not try_lock(descriptor):
        holder = os.pread(descriptor, _MAX_BYTES, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        msg = (
            f"{root} belongs to a job that is running ({holder or 'another run'}). Wait for it, or"
            " end it and every process that it started, or give this one another job id or"
            " directory"
        )
        raise JobRunningError(msg)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"job {job_id}, runner process {os.getpid()}\n".encode(), 0)
    return descriptor


def take_job(
    store: Store,
    prefix: str,
    owner: str,
    report: Callable[[str], None],
    poll_s: float = _POLL_S,
) -> Lease:
    """Take the lease of the job and node below `prefix`, also from a runner that is gone.

    Waits 105 s for a holder that does not renew it: its machine may be lost. `report` gets a line
    for people, `poll_s` are the seconds between two tries.

    Raises:
        JobRunningError: another runner holds it, and renews it.
        StoreError: the store refused.
    """
    lease = Lease(store, run_folder(prefix), owner)
    until = time.monotonic() + EXPIRES_S + _SPARE_S
    seen_first: tuple[str, int] | None = None
    while True:
        try:
            lease.take()
        except LeaseHeldError as error:
            holder = lease.observed_holder
            current = None if holder is None else (holder.token, holder.beat)
            seen_first = seen_first or current
            if current != seen_first or time.monotonic() > until:
                who = f"process {holder.pid} on {holder.host}" if holder else "another process"
                msg = (
                    f"the job below {store.name}/{prefix} is running: {who} has it. Stop that one"
                    " first, or give this one another --job-id"
                )
                raise JobRunningError(msg) from error
            if until - time.monotonic() > EXPIRES_S + _SPARE_S - poll_s:
                report(f"{error.message} Waiting to see whether it is alive")
            time.sleep(poll_s)
        else:
            return lease
