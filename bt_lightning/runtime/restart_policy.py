"""What follows the end of an attempt. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final, Literal

Outcome = Literal["done", "failed", "preempted", "stopped"]
PREEMPTED: Final = frozenset({128 + signal.SIGTERM})
"""Exit codes that say: not a failure, start me again; 143 is what a shell reports of SIGTERM."""
_FIRST_S: Final = 1.0
_LONGEST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended."""

    code: int
    """Of its own, or `-N` by the signal N."""
    told: bool = False
    """Whether the training in it said that a signal ended it: Lightning 2.6 exits with 0 then."""

    @property
    def status(self) -> int:
        """The exit code as a shell reports it."""
        return 128 - self.code if self.code < 0 else self.code


@dataclass(frozen=True, slots=True)
class Policy:
    """When a job is started again."""

    retries: int = 0
    """After this many failures, no more."""
    preemption_codes: frozenset[int] = PREEMPTED
    """Exit codes that count as no failure."""

    def outcome(self, ended: Exit, *, stopping: bool) -> Outcome:
        """What an attempt came to; `stopping`: the runner was told to end, and passed it on."""
        if stopping:
            return "stopped"
        # of two processes of a training the one tells, too, that torchrun ends since the other died
        if (ended.told and ended.code == 0) or ended.status in self.preemption_codes:
            return "preempted"
        return "done" if ended.code == 0 else "failed"

    def again(self, outcome: Outcome, failures: int) -> bool:
        """Whether another attempt follows one with that outcome, the last of so many failures."""
        return outcome == "preempted" or (outcome == "failed" and failures <= self.retries)


def pause_s(failures: int) -> float:
    """Seconds before the attempt after that many failures in a row; none after a preemption."""
    return min(_LONGEST_S, _FIRST_S * 2 ** min(failures - 1, 10)) if failures else 0.0


def final_code(outcome: Outcome, ended: Exit, stopped_by: int | None) -> int:
    """The runner's exit code: the command's own.

    Of a job that was stopped it is never 0: whoever started it must not take it for complete.
    """
    if outcome == "stopped" and ended.code == 0:
        return 128 + (stopped_by or signal.SIGTERM)
    return ended.status
