"""Which job a checkpoint directory belongs to that nobody named; on the rank that writes."""

from __future__ import annotations

import logging
import os
import time
import uuid
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from bt_lightning.fit_ledger import read_ledger
from bt_lightning.job_choice import PathJob, choose_job, made_name, name_of_path
from bt_lightning.localdir.fit_ledger_file import read_fits
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.settings import Job, Settings
from bt_lightning.store.lease import EXPIRES_S, LeaseWatch
from bt_lightning.worker_messages import CheckStore, FindJobs, FoundJob, LeaseSeen, ReadLease

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.fit_identity import FitIdentity
    from bt_lightning.session.session_config import SessionConfig

log = logging.getLogger(__name__)

_ASK_S = 60.0
_PAUSES_S = (0.1, 2.0)
"""Between two looks at a lease, at first and at last."""


def with_own_job(config: SessionConfig) -> SessionConfig:
    """`config`, with a job that no other machine has if its directory is new and nobody named it.

    A directory with checkpoints and without a record keeps the name that its path gives.
    """
    root = config.root
    if config.job_known or read_fits(root) or newest_in_store(root):
        return config
    if list_committed(root, foreign=False).found:
        return config
    began = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    name = made_name(name_of_path(os.fsencode(root)), began, uuid.uuid4().hex[:8])
    return replace(config, job=replace(config.job, job=name), job_is_new=True)


def find_lost_job(
    config: SessionConfig, identity: FitIdentity, ask: Callable[[object, float], object]
) -> Job | None:
    """The job of the store that a new directory has lost, by what is trained; None if none.

    `ask` asks the worker. May take as long as a lease lasts, where one job may be it.

    Raises:
        StoreError: the store cannot be used, or does not answer: to begin would lose what it has.
    """
    if not config.job_is_new or config.store_url is None or config.resume == "never":
        return None
    ask(CheckStore(), _ASK_S)
    of_path = name_of_path(os.fsencode(config.root))
    found = ask(FindJobs(of_path, Job.named(Settings(), str(config.root)).job), _ASK_S)
    jobs = [
        PathJob(one.job, read_ledger(one.ledger.splitlines()))
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, FoundJob)
    ]
    choice = choose_job(identity, jobs)
    if choice.job is None:
        if choice.doubt:
            _say_how_to_name(config.root, choice.doubt)
        return None
    job = replace(config.job, job=choice.job)
    if _is_held(job, ask):
        log.warning(
            "%s is new: begin another job, for %s of the store trains the same elsewhere",
            *(config.root, job.job),
        )
        return None
    log.warning(
        "%s is new: go on with %s of the store, the same training, which did not end; to begin"
        " afresh, BTLightning(resume='never') or a name of its own, BTLightning(job=...)",
        *(config.root, job.job),
    )
    return job


def _say_how_to_name(root: Path, jobs: tuple[str, ...]) -> None:
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    log.warning(
        "%s is new: begin afresh; the store has %s%s of a directory of this path, which did not"
        " end. To go on with it, if it was this machine's: BTLightning(job=%r)",
        *(root, jobs[0], more, jobs[0]),
    )


def _is_held(job: Job, ask: Callable[[object, float], object]) -> bool:
    """Whether somebody else publishes to the job; a lease of who is gone has to run out."""
    watch, pause_s, said = LeaseWatch(), _PAUSES_S[0], False
    while True:
        seen = ask(ReadLease(job.prefix), _ASK_S)
        assert isinstance(seen, LeaseSeen)
        held = watch.is_held(seen.number, seen.holder)
        if held is not None:
            return held
        if not said and pause_s >= _PAUSES_S[1]:
            log.warning(
                "wait for up to %.0f s to see whether %s of the store still trains elsewhere",
                *(EXPIRES_S, job.job),
            )
            said = True
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _PAUSES_S[1])
