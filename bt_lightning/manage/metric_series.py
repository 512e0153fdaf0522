"""Metrics over steps, from the rows of a job: what counts, and what was done again. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.manage.run_history import MOST_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.run_history import Run

Point = tuple[float, float]
"""x and y."""

_LARGEST: Final = 1e300
"""A larger number is drawn nowhere: ranges would overflow. It counts as infinite."""


@dataclass(slots=True)
class MetricSeries:
    """One metric of a job over optimizer steps."""

    name: str
    points: list[Point] = field(default_factory=list)
    """(step, value) as each step was done last, steps rising; values may be NaN or infinite."""
    replaced: list[list[Point]] = field(default_factory=list)
    """Stretches that a later run did again, the same way."""


def metric_series(
    rows: Iterable[dict[str, Any]], runs: Sequence[Run] = ()
) -> dict[str, MetricSeries]:
    """The metrics of the rows of a job's node 0, in the order of time, by name.

    A run of `runs` replaces what had been done beyond the step that it began with; so does a row
    of a step below the one before, where no run is known.
    """
    found: dict[str, MetricSeries] = {}
    waiting = [(run.began_at, run.began_step) for run in reversed(runs)]
    last = -1

    def cut(after: int) -> None:
        for one in found.values():
            _cut(one, after)

    for row in rows:
        step, values, at = row.get("step"), row.get("values"), row.get("at")
        if isinstance(step, bool) or not isinstance(step, int) or not isinstance(values, dict):
            continue
        if abs(step) > MOST_STEPS:
            continue
        while waiting and isinstance(at, int | float) and waiting[-1][0] <= at:
            last = waiting.pop()[1]
            cut(last)
        if step < last:
            cut(step - 1)
        last = step
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                series = found.setdefault(str(name), MetricSeries(str(name)))
                _add(series, step, number_of(value))
    return found


def taken_over(found: dict[str, MetricSeries], later: dict[str, MetricSeries]) -> None:
    """Add the series of a later file to `found`; it counts from its first step on."""
    for name, series in later.items():
        known = found.setdefault(name, MetricSeries(name))
        if series.points:
            _cut(known, int(series.points[0][0]) - 1)
        known.points += series.points
        known.replaced += series.replaced


def series_of_checkpoints(items: Sequence[CheckpointItem]) -> dict[str, MetricSeries]:
    """The metrics that the manifests of kept checkpoints have; for jobs without rows."""
    found: dict[str, MetricSeries] = {}
    for item in sorted(items, key=lambda item: item.manifest.step):
        step = item.manifest.step
        for name, value in item.manifest.metrics.items():
            if abs(step) <= MOST_STEPS:
                series = found.setdefault(name, MetricSeries(name))
                _add(series, step, number_of(value))
    return found


def number_of(value: object) -> float:
    """A number that anybody may have written: NaN if it is none, infinite if it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    if isinstance(value, int) and abs(value) > _LARGEST:
        return math.inf if value > 0 else -math.inf
    number = float(value)
    if math.isnan(number) or abs(number) <= _LARGEST:
        return number
    return math.copysign(math.inf, number)


def _add(series: MetricSeries, step: int, value: float) -> None:
    if series.points and series.points[-1][0] == step:
        series.points[-1] = (step, value)
    else:
        series.points.append((step, value))


def _cut(series: MetricSeries, after: int) -> None:
    """Count what lies beyond the step `after` as replaced."""
    points = series.points
    keep = len(points)
    while keep and points[keep - 1][0] > after:
        keep -= 1
    if keep < len(points):
        series.replaced.append(points[max(0, keep - 1) :])  # joined to what stays
        del points[keep:]
