"""The attempts of one job, one after the other, until it is done, or may not be tried again."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.job_record import Attempt
from bt_lightning.localdir.event_log import Mark, mark_events, read_events
from bt_lightning.runtime.job_record_writer import utc_now
from bt_lightning.runtime.job_spec import environment
from bt_lightning.runtime.restart_policy import Exit, pause_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.runtime.command_process import Child
    from bt_lightning.runtime.job_record_writer import JobRecordWriter
    from bt_lightning.runtime.job_spec import JobSpec
    from bt_lightning.runtime.restart_policy import Outcome, Policy

_QUICK_S: Final = 60.0
"""An attempt that ended sooner came to nothing: the next one waits longer and longer."""
_TOLD: Final = "preempted"
"""The event with which a training process says that a signal ended it."""


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Runs the command of a job again and again, as its policy says."""

    spec: JobSpec
    policy: Policy
    child: Child
    keeper: JobRecordWriter
    inherited: Mapping[str, str] = field(repr=False)
    scratch: Path
    tick: Callable[[], None]
    """Called at least every second."""
    say: Callable[[str], None]

    def run(self, first: int) -> tuple[Outcome, Exit]:
        """Return what the last attempt came to; `first` numbers the first. Main thread only.

        Raises:
            OSError: the system could not start a process.
        """
        failures, quick = 0, 0
        ended = Exit(0)
        for number in itertools.count(first):
            if self.child.stopped_by is not None:
                return "stopped", ended
            started = time.monotonic()
            outcome, ended = self._attempt(number)
            failures += outcome == "failed"
            quick = quick + 1 if time.monotonic() - started < _QUICK_S else 0
            if not self.policy.again(outcome, failures):
                break
            wait_s = pause_s(quick)
            what = "was preempted" if outcome == "preempted" else f"failed with {_how(ended)}"
            self.say(f"the command {what}: attempt {number + 1} begins in {wait_s:.0f} s")
            self.child.sleep(wait_s, self.tick)
        return outcome, ended

    def _attempt(self, number: int) -> tuple[Outcome, Exit]:
        spec, child = self.spec, self.child
        self.keeper.began(Attempt(number=number, started_at=utc_now()))
        variables = environment(spec, self.inherited, number, self.scratch)
        begun = mark_events(spec.checkpoint_dir)
        code = child.run(spec.command, spec.directory, variables, self.tick)
        ended = Exit(code, told=_was_told(spec.checkpoint_dir, begun))
        outcome = self.policy.outcome(ended, stopping=child.stopped_by is not None)
        self.keeper.ended(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            outcome=outcome,
        )
        return outcome, ended


def _was_told(root: Path | None, since: Mark) -> bool:
    """Whether an event behind that says so; not by the clock, which may be set back."""
    if root is None:
        return False
    try:
        return any(event["event"] == _TOLD for event in read_events(root, since))
    except (OSError, CheckpointCorruptError):
        return False


def _how(ended: Exit) -> str:
    return f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
