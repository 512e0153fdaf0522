"""What happened to a job, told from its logs: runs, restarts, work done again, saves, failures.

Pure. Only what the logs say is claimed: of a job without events nothing is known.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FAILURES: Final = {
    "store_failed": "store",
    "disk_failed": "disk",
    "removal_failed": "disk",
    "worker_died": "worker",
}
_FOREVER_MS: Final = 1e12
"""A longer wait is none: anybody may have written an event."""
MOST_STEPS: Final = 10**15
"""A larger number of a step is none."""
_GAVE_WAY: Final = ("skipped", "replaced")
_NOT_SAVED: Final = ("refused", "failed", "torn", "changed", "uncommitted")


@dataclass(slots=True)
class Run:
    """One training process (of rank 0), from the step that it began with."""

    began_at: float
    """Seconds of the epoch."""
    began_step: int
    host: str = ""
    end: str = ""
    """`ended`, `failed`, `preempted`; empty if it ended without a word, or goes on."""
    outcome: str = ""
    """How its process ended, as the job's runner saw it: `failed with signal 9`; or empty."""
    last_at: float = 0.0
    """When it was last heard of."""
    last_step: int = 0
    """The last optimizer step that is known of it."""
    redone_steps: int = 0
    """Steps that the next run did again."""
    redone_s: float = 0.0
    """Seconds that they had taken, about."""
    steps: list[tuple[float, int]] = field(default_factory=list)
    """(at, step) of whatever was logged."""


@dataclass(frozen=True, slots=True)
class Durable:
    """When a checkpoint was where; seconds of the epoch, None: not known."""

    step: int | None
    disk_at: float | None
    store_at: float | None


@dataclass(frozen=True, slots=True)
class RunHistory:
    """The history of a job."""

    known: bool
    """Whether there is any event: without one nothing is known, and the rest says nothing."""
    runs: tuple[Run, ...] = ()
    saves: int = 0
    """Saves that were kept."""
    stall_s: float = 0.0
    """Seconds that training waited for saves."""
    failures: tuple[tuple[float, str], ...] = ()
    """(at, text), in the order of time."""
    durable: dict[str, Durable] = field(default_factory=dict)
    """By the checkpoint's id: its newest generation."""

    @property
    def restarts(self) -> int:
        """Runs that went on where another had not ended well."""
        return sum(before.end != "ended" for before in self.runs[:-1])

    @property
    def redone_steps(self) -> int:
        """Steps that were done again after restarts."""
        return sum(run.redone_steps for run in self.runs)

    @property
    def redone_s(self) -> float:
        """Seconds that those had taken, about."""
        return math.fsum(run.redone_s for run in self.runs)


def run_history(
    events: Iterable[dict[str, Any]], rows: Sequence[dict[str, Any]] = ()
) -> RunHistory:
    """The history that the events, and the rows of metrics, of a job's node 0 tell."""
    ordered = sorted([*events, *rows], key=lambda event: _number(event.get("at")))
    runs: list[Run] = []
    failures: list[tuple[float, str]] = []
    durable: dict[str, Durable] = {}
    saves, waited_s, known = 0, 0.0, False
    watched: Run | None = None  # of the attempt that the runner is at
    for event in ordered:
        kind, at = event.get("event"), _number(event.get("at"))
        known = known or kind != "metrics"
        if kind == "began":
            run = Run(at, _step(event), str(event.get("host") or ""), last_at=at)
            run.last_step = run.began_step
            run.steps.append((at, run.began_step))
            runs.append(run)
            watched = run
            continue
        if kind in {"attempt_began", "attempt_ended"}:
            if watched is not None and kind == "attempt_ended":
                watched.outcome = attempt_end(event)
            watched = None
        if runs:
            _note(runs[-1], event, at)
        if kind == "save":
            saves += event.get("decision") not in (*_GAVE_WAY, *_NOT_SAVED)
            waited_s += stall_s(event)
        if (text := _failure(event)) is not None:
            failures.append((at, text))
        _note_durable(durable, event, at)
    for before, after in itertools.pairwise(runs):
        _count_again(before, after)
    return RunHistory(known, tuple(runs), saves, waited_s, tuple(failures), durable)


def _note(run: Run, event: dict[str, Any], at: float) -> None:
    kind = event.get("event")
    if kind in {"attempt_began", "attempt_ended"}:
        return  # of the runner
    if kind in {"save", "metrics", "ended", "preempted"} and "step" in event:
        step = _step(event)
        when = _number(event.get("began")) if kind == "save" else at
        run.steps.append((when if math.isfinite(when) else at, step))
        run.last_step = max(run.last_step, step)
    run.last_at = max(run.last_at, at)
    if kind == "ended":
        run.end = "failed" if event.get("failed") else "ended"
    elif kind == "preempted":
        run.end = "preempted"


def _count_again(before: Run, after: Run) -> None:
    """Count what `after` does again of `before`, unless that had come to its end."""
    if before.end == "ended":
        return
    before.redone_steps = max(0, before.last_step - after.began_step)
    if before.redone_steps:
        reached = min((at for at, step in before.steps if step >= after.began_step), default=None)
        if reached is not None:
            before.redone_s = max(0.0, before.last_at - reached)


def _failure(event: dict[str, Any]) -> str | None:
    kind = event.get("event")
    if kind == "save" and event.get("decision") in (*_GAVE_WAY, *_NOT_SAVED):
        return f"save {event.get('number')} of step {event.get('step')}: {event.get('decision')}"
    if isinstance(kind, str) and kind in _FAILURES:
        return f"{_FAILURES[kind]}: {event.get('error')}"
    if kind == "ended" and event.get("failed"):
        return "the training ended with an error"
    if kind == "attempt_ended" and event.get("outcome") in ("failed", "preempted"):
        return f"attempt {event.get('number')}: {attempt_end(event)}"
    return None


def attempt_end(event: dict[str, Any]) -> str:
    """How an attempt of a job ended, by its event: `failed with signal 9`."""
    number, code = event.get("signal"), event.get("exit_code")
    return f"{event.get('outcome')} with {f'signal {number}' if number else f'exit code {code}'}"


def _note_durable(found: dict[str, Durable], event: dict[str, Any], at: float) -> None:
    name = event.get("checkpoint")
    kind = event.get("event")
    if kind == "save" and isinstance(name := event.get("checkpoint_id"), str) and name in found:
        known = found[name]
        found[name] = Durable(_step(event), known.disk_at, known.store_at)
    if not isinstance(name, str) or kind not in {"durable", "streamed", "published"}:
        return
    known = found.get(name, Durable(None, None, None))
    if kind == "durable":
        found[name] = Durable(known.step, at, None)
    else:
        found[name] = Durable(known.step, None if kind == "streamed" else known.disk_at, at)


def stall_s(event: dict[str, Any]) -> float:
    """Seconds that training waited for one save, by its event."""
    parts = (_number(event.get(name, 0.0)) for name in ("call_ms", "guard_ms"))
    return sum(part for part in parts if abs(part) < _FOREVER_MS) / 1000


def _step(event: dict[str, Any]) -> int:
    step = event.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or abs(step) > MOST_STEPS:
        return 0
    return step


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
