"""Attempts of one job, run one after the other until it is done or may not be tried again."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.job_record import Attempt
from bt_lightning.localdir.event_log import Mark, mark_events, note, read_events
from bt_lightning.localdir.read_ahead import begin_read_ahead
from bt_lightning.runtime.job_record_writer import utc_now
from bt_lightning.runtime.job_spec_and_environment import environment
from bt_lightning.runtime.leader_port import await_leader
from bt_lightning.runtime.restart_policy import Exit, pause_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.runtime.command_process import Child
    from bt_lightning.runtime.job_record_writer import JobRecordWriter
    from bt_lightning.runtime.job_spec_and_environment import JobSpec
    from bt_lightning.runtime.output_capture import OutputCapture
    from bt_lightning.runtime.restart_policy import Outcome, RestartPolicy

_SHORT_S: Final = 60.0
"""After attempts shorter than this, the pause before the next one doubles."""
_PREEMPTED: Final = "preempted"
"""The event that a training process logs when a signal ends it."""
_BEGAN: Final = "began"
"""The event of a training that begins."""


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Runs the command of a job again and again, as its restart policy says."""

    spec: JobSpec
    policy: RestartPolicy
    child: Child
    record_writer: JobRecordWriter
    inherited: Mapping[str, str] = field(repr=False)
    scratch: Path
    tick: Callable[[], None]
    """Called at least every second."""
    capture: OutputCapture | None = None
    """Logs what the commands print."""
    report: Callable[[str], None]

    def run(self, first: int) -> tuple[Outcome, Exit]:
        """Run attempts, numbered from `first`; return the last one's outcome. Main thread only.

        Raises:
            OSError: the system could not start a process.
        """
        failures, short_attempts = 0, 0
        ended = Exit(0)
        for number in itertools.count(first):
            if self.child.stopped_by is not None:
                return "stopped", ended
            if self.spec.meets and self.spec.nodes.rank:
                meeting, again = self.spec.nodes.meeting, number > first
                await_leader(meeting, self.child, self.tick, restarts=again)
            started = time.monotonic()
            outcome, ended = self._attempt(number)
            failures += outcome == "failed"
            short_attempts = short_attempts + 1 if time.monotonic() - started < _SHORT_S else 0
            if not self.policy.again(outcome, failures):
                break
            wait_s = pause_s(short_attempts)
            what = "was preempted" if outcome == "preempted" else f"failed with {_exit_text(ended)}"
            self.report(f"the command {what}: attempt {number + 1} begins in {wait_s:.0f} s")
            self.child.sleep(wait_s, self.tick)
        return outcome, ended

    def _attempt(self, number: int) -> tuple[Outcome, Exit]:
        spec, child = self.spec, self.child
        self.record_writer.began(Attempt(number=number, started_at=utc_now()))
        variables = environment(spec, self.inherited, number, self.scratch)
        self._note("attempt_began", number=number, host=socket.gethostname())
        mark = mark_events(spec.checkpoint_dir)
        if spec.checkpoint_dir is not None:
            begin_read_ahead(spec.checkpoint_dir, shards=spec.nodes.size == 1)
        if self.capture is not None:
            variables.setdefault("PYTHONUNBUFFERED", "1")  # last words are printed before a kill
            self.capture.begin(number)
        code = child.run(spec.command, spec.directory, variables, self.tick)
        if self.capture is not None:
            self.capture.settle()
        ended = Exit(code, preempted=_was_preempted(spec, mark))
        outcome = self.policy.outcome(ended, stopping=child.stopped_by is not None)
        facts = {
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "outcome": outcome,
        }
        self.record_writer.ended(**facts)
        self._note("attempt_ended", number=number, **facts)
        return outcome, ended

    def _note(self, event: str, **facts: object) -> None:
        if self.spec.checkpoint_dir is not None:
            with contextlib.suppress(OSError):  # a lost event does no harm
                note(self.spec.checkpoint_dir, event, **facts)


def _was_preempted(spec: JobSpec, since: Mark) -> bool:
    """Whether an event after `since` says so: a mark in the file, as a clock may be set back.

    A torchrun of several nodes ends its processes for a node that comes, and begins once more.
    """
    if spec.checkpoint_dir is None:
        return False
    wanted = {_PREEMPTED, _BEGAN} if spec.meets else {_PREEMPTED}
    try:
        found = [event["event"] for event in read_events(spec.checkpoint_dir, since)]
    except (OSError, CheckpointCorruptError):
        return False
    return [kind for kind in found if kind in wanted][-1:] == [_PREEMPTED]


def _exit_text(ended: Exit) -> str:
    return f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
