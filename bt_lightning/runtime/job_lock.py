"""At most one runner has a job: by its directory on this machine, by a lease in the store."""

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
_LONGEST: Final = 200
_LOOK_S: Final = 5.0
_SPARE_S: Final = 15.0


def lock_directory(root: Path, job_id: str) -> int:
    """Take `root` for the job; return the descriptor that holds it, for its command to inherit.

    The kernel frees it when the last process that has the descriptor is gone, also by SIGKILL: a
    training process that outlives its runner keeps a second run away.

    Raises:
        JobRunningError: another run has it.
        OSError: the disk refused.
    """
    path = root / DOT_DIR / _NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)
    if not try_lock(descriptor):
        said = os.pread(descriptor, _LONGEST, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        msg = (
            f"{root} belongs to a job that is running ({said or 'another run'}). Wait for it, or"
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
    say: Callable[[str], None],
    look_s: float = _LOOK_S,
) -> Lease:
    """Take the lease of the job and node below `prefix` from whoever is gone.

    One that shows no life is waited for, 90 s and a little: its machine may be lost.

    Raises:
        JobRunningError: another runner has it, and lives.
        StoreError: the store refused.
    """
    lease = Lease(store, run_folder(prefix), owner)
    until = time.monotonic() + EXPIRES_S + _SPARE_S
    first: tuple[str, int] | None = None
    while True:
        try:
            lease.take()
        except LeaseHeldError as error:
            holder = lease.observed_holder
            now = None if holder is None else (holder.token, holder.beat)
            first = first or now
            if now != first or time.monotonic() > until:
                who = f"process {holder.pid} on {holder.host}" if holder else "another process"
                msg = (
                    f"the job below {store.name}/{prefix} is running: {who} has it. Stop that one"
                    " first, or give this one another --job-id"
                )
                raise JobRunningError(msg) from error
            if until - time.monotonic() > EXPIRES_S + _SPARE_S - look_s:
                say(f"{error.message} Waiting to see whether it lives")
            time.sleep(look_s)
        else:
            return lease
