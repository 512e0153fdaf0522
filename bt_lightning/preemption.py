"""What to do when a run has been told to end: save once more, or only finish what is under way.

Pure. Every time is in seconds and measured in this run, but for the grace, which the platform sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Word = Literal["save", "later", "finish", "leave", "requeue"]
"""`save` the state of this moment; wait for a `later` one, which resumes exactly; first `finish`
the saves under way, and ask again; `leave` with what is saved; `requeue` the job too, which SLURM
asked for before it told the run to end."""

WORDS: tuple[Word, ...] = ("save", "later", "finish", "leave", "requeue")

ASSUMED_GRACE_S = 30.0
"""What is taken to be given where nobody says: the default of Kubernetes and of torchrun."""
EXIT_S = 2.0
"""Kept for the end of the process itself: loggers, the strategy, the interpreter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A run that was told to end, at a moment at which it may save."""

    left_s: float
    """Until the process is killed."""
    covered: bool
    """Whether a save of this very state is committed or under way."""
    safe: bool = True
    """Whether the state can be saved at this moment at all."""
    under_way: int = 0
    """Saves that are not on the disk yet."""
    behind_s: float = 0.0
    """Until they are, by the saves before."""
    save_s: float | None = None
    """From the call that saves until the disk has it; None before the first save of a run."""
    later_s: float | None = 0.0
    """Until a moment whose state resumes exactly; 0 at such a one, None if nobody can say."""


def judge(at: Situation) -> Word:
    """The newest state that can be kept, and none that is under way is put at risk for it.

    A save that may not end in time is tried only where it can harm no other.
    """
    if at.covered:
        return "leave"
    left = rest_s(at.left_s)
    spare = left - at.behind_s - (at.save_s or 0.0)
    if _worth_waiting(at, left, spare):
        return "later"
    if not at.safe or left <= 0:
        return "leave"
    if at.under_way and at.save_s is None:
        return "finish"
    return "leave" if at.under_way and spare < 0 else "save"


def _worth_waiting(at: Situation, left: float, spare: float) -> bool:
    if at.later_s is None:
        return spare > left / 2 > 0  # it is asked again on the way there
    return 0 < at.later_s <= spare


def rest_s(left_s: float) -> float:
    """How long the end of the run may wait for the disk and the store."""
    return max(0.0, left_s - EXIT_S)
