"""One node of a job, from its directory to its last byte in the store."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.localdir.directory_check import check_root
from bt_lightning.runtime.attempts import Supervisor
from bt_lightning.runtime.command_process import Child
from bt_lightning.runtime.job_lock import lock_directory
from bt_lightning.runtime.job_resources import JobResources, SignalHearing, settings_of
from bt_lightning.runtime.job_spec import caches
from bt_lightning.runtime.scratch_directory import scratch_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.runtime.job_spec import JobSpec
    from bt_lightning.runtime.restart_policy import Policy


def run_job(
    spec: JobSpec,
    policy: Policy,
    inherited: Mapping[str, str],
    hearing: SignalHearing,
    *,
    drain_s: float,
) -> int:
    """Run the job; return the exit code of its command, or ours if that is 0 and data waits.

    Called by the command line, in its main thread: it forwards signals. Never imports torch.

    Raises:
        JobRunningError: another runner has the job or the directory.
        InvalidSettingError, DirectoryUnusableError: it cannot run so.
        CheckpointNotFoundError, CheckpointCorruptError, DirectoryFullError, StoreError: what is to
            be loaded cannot be.
    """
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(Child(spec.grace_s))
        with child.preparing():
            root = None if spec.checkpoint_dir is None else check_root(spec.checkpoint_dir)
            if root is not None:
                held = lock_directory(root, spec.job_id)
                stack.callback(os.close, held)
                child.keep_open = (held,)
            job = stack.enter_context(JobResources(spec, root, hearing))
            job.open()
            job.load_references()
            scratch, held_scratch = stack.enter_context(scratch_directory(inherited, root))
            child.keep_open += (held_scratch,)
            for folder in caches(spec).values():
                Path(folder).mkdir(parents=True, exist_ok=True)
            job.start_worker(drain_s, settings_of(spec, inherited))
        supervisor = Supervisor(
            spec=spec,
            policy=policy,
            child=child,
            keeper=job.keeper,
            inherited=inherited,
            scratch=scratch,
            tick=job.tick,
            say=hearing.say,
        )
        outcome, ended = supervisor.run(job.attempts)
        return job.finish(outcome, ended, child, drain_s)
