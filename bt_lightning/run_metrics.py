"""What an operator wants to know of a run, as metrics for Prometheus: table, counts, samples. Pure.

Counts come from the events of the checkpoint directory, whichever process wrote them. Times are
seconds of the epoch, as Prometheus has it: an age grows also when nobody is left to write.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from bt_lightning.prometheus_text import Metric, Sample
from bt_lightning.save_decisions import DECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Place = Literal["disk", "store"]

_ENDS: Final = ("ended", "failed", "preempted", "lost")
_OUTCOMES: Final = ("done", "failed", "preempted", "stopped")
_FAILURES: Final = {
    "store_failed": "store",
    "disk_failed": "disk",
    "removal_failed": "removal",
    "worker_died": "worker",
}
_SAVES: Final = 10
"""So many saves tell how often a run saves."""
_LARGEST: Final = 1e15
"""A larger number in an event is none: anybody may have written it."""


def _metric(name: str, kind: Literal["counter", "gauge", "summary"], text: str) -> Metric:
    return Metric(f"bt_lightning_{name}", kind, text)


INFO = _metric("info", "gauge", "1; its labels say which version writes the metrics.")
UPDATED = _metric("updated_timestamp_seconds", "gauge", "When these metrics were written.")
TRAINING = _metric("training", "gauge", "1 while a training runs, else 0.")
NEWEST = _metric(
    "newest_checkpoint_timestamp_seconds",
    "gauge",
    "When the newest checkpoint that is durable in the place was saved.",
)
NEWEST_STEP = _metric("newest_checkpoint_step", "gauge", "The optimizer step that it has.")
CHECKPOINTS = _metric("checkpoints", "gauge", "Checkpoints that are committed in the place.")
CHECKPOINT_BYTES = _metric("checkpoint_bytes", "gauge", "Bytes of these checkpoints.")
INTERVAL = _metric(
    "save_interval_seconds", "gauge", "Median seconds between the last saves of this training."
)
WAITING = _metric("waiting_checkpoints", "gauge", "Checkpoints that are not in the store yet.")
WAITING_BYTES = _metric("waiting_bytes", "gauge", "Bytes of these that are not in the store yet.")
SENT = _metric("sent_bytes_total", "counter", "Bytes of checkpoints that were sent to the store.")
STORE_FAILING = _metric(
    "store_failing", "gauge", "1 if the last try to send failed and will be repeated, else 0."
)
STORE_REFUSING = _metric(
    "store_refusing", "gauge", "1 if the store refuses what another try does not cure, else 0."
)
REQUEST_RETRIES = _metric(
    "request_retries_total", "counter", "Requests to the store that were repeated."
)
PUBLISH_FAILURES = _metric(
    "publish_failures_total", "counter", "Tries to bring the store up to date that failed."
)
DISK_FREE = _metric("disk_free_bytes", "gauge", "Free bytes of the volume of the directory.")
BUDGET = _metric("disk_budget_bytes", "gauge", "Bytes that the directory may take, if limited.")
SAVES = _metric("saves_total", "counter", "Saves, by what became of them.")
BLOCKED = _metric(
    "save_blocked_seconds_total", "counter", "Seconds that training waited for its saves."
)
DURABLE = _metric(
    "save_durable_seconds", "summary", "Seconds from a save until it was durable in the place."
)
EVICTED = _metric("evicted_total", "counter", "Copies that were deleted from the disk for room.")
EVICTED_BYTES = _metric("evicted_bytes_total", "counter", "Bytes of these copies.")
STREAMED = _metric(
    "streamed_total", "counter", "Saves that went to the store alone, for lack of room."
)
FAILURES = _metric("failures_total", "counter", "Failures that began, each row of them once.")
RUNS = _metric("runs_total", "counter", "Trainings that are over, by how they ended.")
ATTEMPTS = _metric(
    "attempts_total", "counter", "Commands of bt-lightning run that are over, by their outcome."
)

TABLE: Final = (
    INFO,
    UPDATED,
    TRAINING,
    NEWEST,
    NEWEST_STEP,
    CHECKPOINTS,
    CHECKPOINT_BYTES,
    INTERVAL,
    WAITING,
    WAITING_BYTES,
    SENT,
    STORE_FAILING,
    STORE_REFUSING,
    REQUEST_RETRIES,
    PUBLISH_FAILURES,
    DISK_FREE,
    BUDGET,
    SAVES,
    BLOCKED,
    DURABLE,
    EVICTED,
    EVICTED_BYTES,
    STREAMED,
    FAILURES,
    RUNS,
    ATTEMPTS,
)
"""All metrics, in the order in which they are written."""


@dataclass(slots=True)
class EventCounts:
    """What the events of a directory add up to; fed in their order."""

    saves: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    blocked_s: float = 0.0
    evicted: int = 0
    evicted_bytes: float = 0.0
    streamed: int = 0
    durable_s: dict[str, float] = field(default_factory=lambda: {"disk": 0.0, "store": 0.0})
    durable: Counter[str] = field(default_factory=Counter)
    training: bool = False
    """Whether a training began, and nothing says that it is over."""
    _saved_at: deque[float] = field(default_factory=lambda: deque(maxlen=_SAVES + 1))

    @property
    def interval_s(self) -> float | None:
        """Median seconds between the last saves of the training; None before the second."""
        times = sorted(self._saved_at)
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        return (gaps[(len(gaps) - 1) // 2] + gaps[len(gaps) // 2]) / 2 if gaps else None

    def add(self, event: dict[str, Any]) -> None:
        """Count one event; what it says may be anything."""
        kind = event.get("event")
        match kind:
            case "save":
                self._add_save(event)
            case "durable" | "streamed" | "published":
                self._add_durable(kind, event)
            case "evicted":
                self.evicted += 1
                self.evicted_bytes += _number(event.get("bytes"))
            case "began":
                self._end("lost")  # of one that never said how it ended
                self.training = True
                self._saved_at.clear()
            case "ended":
                self._end("failed" if event.get("failed") else "ended")
            case "preempted":
                self._end("preempted")
            case "attempt_ended":
                self._end("lost")
                _count(self.attempts, event.get("outcome"), _OUTCOMES)
            case str() if kind in _FAILURES:
                self.failures[_FAILURES[kind]] += 1

    def _end(self, how: str) -> None:
        if self.training:
            self.runs[how] += 1
        self.training = False

    def _add_save(self, event: dict[str, Any]) -> None:
        decision = event.get("decision")
        _count(self.saves, decision, DECISIONS)
        if decision in ("saved", "waited"):
            self._saved_at.append(_number(event.get("began", event.get("at"))))
        self.blocked_s += (_number(event.get("call_ms")) + _number(event.get("guard_ms"))) / 1000

    def _add_durable(self, kind: str, event: dict[str, Any]) -> None:
        place: Place = "store" if kind == "published" else "disk"
        seconds = event.get("remote_durable_s" if place == "store" else "local_durable_s")
        self.streamed += kind == "streamed"
        if kind != "streamed":  # its "published" follows
            self.durable[place] += 1
            self.durable_s[place] += _number(seconds)


def _count(counter: Counter[str], value: object, known: tuple[str, ...]) -> None:
    if isinstance(value, str) and value in known:
        counter[value] += 1


def _number(value: object) -> float:
    """A number of an event, from 0 on; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < _LARGEST and math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFacts:
    """The checkpoints of one place."""

    count: int
    size: int
    """Bytes."""
    newest_at: float | None
    """When the newest was saved, in seconds of the epoch; None if there is none."""
    newest_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is seen of a run at one moment, beside its events."""

    version: str
    at: float
    """Seconds of the epoch."""
    training: bool
    places: dict[Place, PlaceFacts]
    """Places that could be looked at."""
    waiting: int
    waiting_bytes: int
    sent_bytes: int
    store_failing: bool
    store_refusing: bool
    has_store: bool
    request_retries: int
    publish_failures: int
    disk_free: int
    budget: int | None = None
    """Bytes; None for no limit."""


def run_samples(facts: RunFacts, counts: EventCounts) -> Iterator[Sample]:
    """The samples of a run, in the order of `TABLE`."""
    yield Sample(INFO, 1, (("version", facts.version),))
    yield Sample(UPDATED, facts.at)
    yield Sample(TRAINING, facts.training)
    for place, seen in facts.places.items():
        of_place = (("place", place),)
        if seen.newest_at is not None:
            yield Sample(NEWEST, seen.newest_at, of_place)
            yield Sample(NEWEST_STEP, seen.newest_step, of_place)
        yield Sample(CHECKPOINTS, seen.count, of_place)
        yield Sample(CHECKPOINT_BYTES, seen.size, of_place)
    if (interval_s := counts.interval_s) is not None:
        yield Sample(INTERVAL, interval_s)
    if facts.has_store:
        yield Sample(WAITING, facts.waiting)
        yield Sample(WAITING_BYTES, facts.waiting_bytes)
        yield Sample(SENT, facts.sent_bytes)
        yield Sample(STORE_FAILING, facts.store_failing)
        yield Sample(STORE_REFUSING, facts.store_refusing)
        yield Sample(REQUEST_RETRIES, facts.request_retries)
        yield Sample(PUBLISH_FAILURES, facts.publish_failures)
    yield Sample(DISK_FREE, facts.disk_free)
    if facts.budget is not None:
        yield Sample(BUDGET, facts.budget)
    yield from _of_events(counts)


def _of_events(counts: EventCounts) -> Iterator[Sample]:
    yield from _each(SAVES, "decision", counts.saves, DECISIONS)
    yield Sample(BLOCKED, counts.blocked_s)
    places: tuple[Place, ...] = ("disk", "store")
    for place in places:
        yield Sample(DURABLE, counts.durable_s[place], (("place", place),), "_sum")
        yield Sample(DURABLE, counts.durable[place], (("place", place),), "_count")
    yield Sample(EVICTED, counts.evicted)
    yield Sample(EVICTED_BYTES, counts.evicted_bytes)
    yield Sample(STREAMED, counts.streamed)
    yield from _each(FAILURES, "of", counts.failures, tuple(_FAILURES.values()))
    yield from _each(RUNS, "end", counts.runs, _ENDS)
    yield from _each(ATTEMPTS, "outcome", counts.attempts, _OUTCOMES)


def _each(
    metric: Metric, label: str, counter: Counter[str], values: Iterable[str]
) -> Iterator[Sample]:
    """One sample a value, also of what has not happened: a rate needs a 0 to begin with."""
    for value in values:
        yield Sample(metric, counter[value], ((label, value),))
