"""The restart policy of a job: what an attempt's exit means, and whether another follows. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final, Literal

Outcome = Literal["done", "failed", "preempted", "stopped"]
PREEMPTED: Final = frozenset({128 + signal.SIGTERM})
"""Exit codes that mean a preemption, not a failure; 143 is a shell's code for SIGTERM."""
_FIRST_S: Final = 1.0
_LONGEST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended."""

    code: int
    """Exit code, or -N if signal N ended it."""
    preempted: bool = False
    """Whether the training logged that a signal ended it: Lightning 2.6 exits with 0 then."""

    @property
    def status(self) -> int:
        """The exit code as a shell reports it."""
        return 128 - self.code if self.code < 0 else self.code


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a job is started again."""

    retries: int = 0
    """Failures after which there is another attempt."""
    preemption_codes: frozenset[int] = PREEMPTED
    """Exit codes that count as no failure."""

    def outcome(self, ended: Exit, *, stopping: bool) -> Outcome:
        """The outcome of an attempt; `stopping`: the runner forwarded a signal to end."""
        if stopping:
            return "stopped"
        # code 0 only: when one rank dies, torchrun ends the others by a signal, which they log too
        if (ended.preempted and ended.code == 0) or ended.status in self.preemption_codes:
            return "preempted"
        return "done" if ended.code == 0 else "failed"

    def again(self, outcome: Outcome, failures: int) -> bool:
        """Whether another attempt follows one with that outcome, after `failures` in all."""
        return outcome == "preempted" or (outcome == "failed" and failures <= self.retries)


def pause_s(failures: int) -> float:
    """Seconds to wait before the next attempt, after so many short attempts in a row."""
    return min(_LONGEST_S, _FIRST_S * 2 ** min(failures - 1, 10)) if failures else 0.0


def final_code(outcome: Outcome, ended: Exit, stopped_by: int | None) -> int:
    """The runner's exit code: the command's own.

    It is never 0 for a job that was stopped, which must not count as complete.
    """
    if outcome == "stopped" and ended.code == 0:
        return 128 + (stopped_by or signal.SIGTERM)
    return ended.status
