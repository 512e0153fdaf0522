"""The decision at the end of a run: save once more, or only finish the saves under way.

Pure. Every time is in seconds and measured in this run, except the grace, which the platform sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BoundaryDecision = Literal["save", "later", "finish", "leave", "requeue"]
"""`save` the present state; wait for a `later` one, which resumes exactly; `finish` the saves under
way first, and decide again; `leave` with what is saved; also `requeue` the job, as SLURM asked
before it told the run to end."""

BOUNDARY_DECISIONS: tuple[BoundaryDecision, ...] = ("save", "later", "finish", "leave", "requeue")

ASSUMED_GRACE_S = 30.0
"""The grace if none is set: the default of Kubernetes and of torchrun."""
EXIT_S = 2.0
"""Seconds reserved for the end of the process: loggers, the strategy, the interpreter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of a run that was told to end, at a boundary where it may save."""

    left_s: float
    """Seconds until the process is killed."""
    covered: bool
    """Whether a save of this same state is committed or under way."""
    safe: bool = True
    """Whether the state can be saved at this boundary at all."""
    under_way: int = 0
    """Saves that are not on the disk yet."""
    behind_s: float = 0.0
    """Seconds until they are, as estimated from earlier saves."""
    save_s: float | None = None
    """Seconds from the start of a save until the disk has it; None before a run's first save."""
    later_s: float | None = 0.0
    """Seconds until a boundary that resumes exactly; 0 at such a one, None if unknown."""


def judge(at: Situation) -> BoundaryDecision:
    """Decide so that the newest state is kept, without risk to saves under way.

    A save that may not end in time is tried only if no other save is under way.
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
        return spare > left / 2 > 0  # the decision is made again on the way
    return 0 < at.later_s <= spare


def rest_s(left_s: float) -> float:
    """Seconds that the end of the run may wait for the disk and the store."""
    return max(0.0, left_s - EXIT_S)
