"""A run of one node of a job, from its directory to the last byte in the store."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.runtime.attempts import Supervisor
from bt_lightning.runtime.command_process import Child
from bt_lightning.runtime.job_lock import lock_directory
from bt_lightning.runtime.job_resources import JobReporter, JobResources, upload_settings
from bt_lightning.runtime.job_spec_and_environment import caches
from bt_lightning.runtime.output_capture import OutputCapture
from bt_lightning.runtime.scratch_directory import scratch_directory
from bt_lightning.runtime.stop_requests import StopRequests
from bt_lightning.store.secrets import log_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.job_record import StopRequest
    from bt_lightning.runtime.job_spec_and_environment import JobSpec
    from bt_lightning.runtime.restart_policy import RestartPolicy


def run_job(
    spec: JobSpec,
    policy: RestartPolicy,
    inherited: Mapping[str, str],
    reporter: JobReporter,
    *,
    drain_s: float,
) -> int:
    """Run the job; return its command's exit code, or 25 if that is 0 and not all is uploaded.

    Called by the command line, in its main thread: it forwards signals. Never imports torch.
    `drain_s` are the seconds that the end waits for the store.

    Raises:
        JobRunningError: another runner has the job or the directory.
        InvalidSettingError, DirectoryUnusableError: the job cannot run as specified.
        CheckpointNotFoundError, CheckpointCorruptError, DirectoryFullError, StoreError: a
            checkpoint that the job loads cannot be loaded.
    """

    def asked(request: StopRequest) -> None:  # on a thread that looks for requests
        reporter.say(f"{request.by} asks this job to stop: {_what_follows(request)}")
        if child.is_preparing:
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        child = stack.enter_context(Child(spec.grace_s))
        with child.preparing():
            root = None if spec.checkpoint_dir is None else check_root(spec.checkpoint_dir)
            if root is not None:
                lock_descriptor = lock_directory(root, spec.job_id)
                stack.callback(os.close, lock_descriptor)
                child.keep_open = (lock_descriptor,)
            job = stack.enter_context(JobResources(spec, root, reporter))
            requests = stack.enter_context(StopRequests(job.run, asked))
            job.open()
            job.watch(requests)
            job.load_references()
            scratch, scratch_descriptor = stack.enter_context(scratch_directory(inherited, root))
            child.keep_open += (scratch_descriptor,)
            for folder in caches(spec).values():
                Path(folder).mkdir(parents=True, exist_ok=True)
            job.start_worker(drain_s, upload_settings(spec, inherited))
            capture = None
            is_python = not getattr(sys, "frozen", False)  # which can start a module
            if root is not None and spec.store_url is not None and spec.logs and is_python:
                secrets = log_secrets({**inherited, **spec.variables}, spec.secrets)
                capture = OutputCapture(root, secrets, reporter.warn)
                stack.callback(capture.close)
                child.streams, child.on_resize = capture.streams, capture.resize

        def tick() -> None:
            job.tick()
            if requests.request is not None:
                _stop(requests.request, child, job)
            if capture is not None:
                capture.tick()

        supervisor = Supervisor(
            spec=spec,
            policy=policy,
            child=child,
            record_writer=job.record_writer,
            inherited=inherited,
            scratch=scratch,
            tick=tick,
            capture=capture,
            report=reporter.say,
        )
        outcome, ended = supervisor.run(job.attempts)
        if capture is not None:
            capture.close()  # its last lines are sent below
        return job.finish(outcome, ended, child, drain_s)


def _stop(request: StopRequest, child: Child, job: JobResources) -> None:
    if not child.end(request):
        return
    job.record_writer.update(stop_asked_by=request.by)
    job.note("stop_asked", by=request.by)


def _what_follows(request: StopRequest) -> str:
    killed = "" if request.grace_s is None else f", and is killed {request.grace_s:g} s later"
    return f"its command gets a SIGTERM{killed}"
