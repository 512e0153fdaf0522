"""The metrics of one job or of several, each over steps. Pure."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final

from bt_lightning.cli.report.chart_scale import number_text
from bt_lightning.cli.report.job_sections import counted
from bt_lightning.cli.report.svg_chart import (
    MANY_POINTS,
    NUM_COLOURS,
    Band,
    ChartMark,
    Line,
    html_text,
    line_chart,
)
from bt_lightning.manage.run_history import MOST_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.job_facts import JobFacts
    from bt_lightning.manage.metric_series import MetricSeries

_FIRST: Final = 8
_NAME: Final = 30
_MOST: Final = 64
"""Charts that are drawn; the first ones lie open."""


def metric_charts(jobs: Sequence[JobFacts]) -> str:
    """A chart for each metric, those of all jobs in one; losses first."""
    names = sorted({name for job in jobs for name in job.metrics}, key=metric_order)
    charts = [chart for name in names[:_MOST] if (chart := _chart(name, jobs))]
    parts = ["<h2>Metrics</h2>", _explained(jobs)]
    if charts:
        parts.append(f'<div class="charts">{"".join(charts[:_FIRST])}</div>')
    if charts[_FIRST:]:
        rest = "".join(charts[_FIRST:])
        parts.append(
            f"<details><summary>{counted(len(charts) - _FIRST, 'metric')} more</summary>"
            f'<div class="charts">{rest}</div></details>'
        )
    if len(names) > _MOST:
        left = ", ".join(names[_MOST : 2 * _MOST])
        more = ", ..." if len(names) > 2 * _MOST else ""
        parts.append(f'<p class="note">Not drawn: {html_text(left)}{more}</p>')
    return "".join(parts)


def _explained(jobs: Sequence[JobFacts]) -> str:
    if not any(job.metrics for job in jobs):
        return '<p class="note">Not known: nothing was logged, and no checkpoint has metrics.</p>'
    said = []
    kept_only = [job.job for job in jobs if job.metrics_of == "checkpoints" and job.metrics]
    if kept_only and len(jobs) == 1:
        said.append("There are no logged rows: these are the values of kept checkpoints.")
    elif kept_only:
        said.append(
            f"Of {html_text(', '.join(kept_only))} only the values of kept checkpoints are known."
        )
    else:
        said.append("At every logged step.")
    if any(job.metrics_of == "loggers" for job in jobs):
        said.append("There are no rows of our own: they are from CSV files of loggers.")
    if any(one.replaced for job in jobs for one in job.metrics.values()):
        tint = "Tinted, and drawn faintly" if len(jobs) == 1 else "Drawn faintly"
        said.append(f"{tint}: steps that were done again.")
    every = [one for job in jobs for one in job.metrics.values()]
    if any(len(one.points) > MANY_POINTS for one in every):
        said.append(f"Lines of more than {MANY_POINTS:,} points are means; fainter: every point.")
    if len(jobs) == 1 and jobs[0].items and jobs[0].metrics_of != "checkpoints":
        said.append("Green marks: checkpoints that are kept.")
    return f'<p class="note">{" ".join(said)}</p>'


def _chart(name: str, jobs: Sequence[JobFacts]) -> str:
    have = [
        (number, job, job.metrics[name]) for number, job in enumerate(jobs) if name in job.metrics
    ]
    lines = [Line(one.points, number, one.replaced) for number, _, one in have]
    bands, marks = (_bands(jobs[0]), _marks(jobs[0])) if len(jobs) == 1 else ((), ())
    drawn = line_chart(lines, f"{name} over steps", "step", bands=bands, marks=marks)
    if not drawn:
        return ""
    if len(jobs) == 1:
        said = f"<p>{_summary(have[0][2])}</p>"
    else:
        values = "".join(
            f'<li class="s{number % NUM_COLOURS}"><i></i>{_short(job.job)} {_last(one)}</li>'
            for number, job, one in have
        )
        said = f'<ul class="key">{values}</ul>'
    lost = "".join(_not_finite(job.job if len(jobs) > 1 else "", one) for _, job, one in have)
    return f'<div class="card"><h3>{html_text(name)}</h3>{said}{lost}{drawn}</div>'


def _short(name: str) -> str:
    """A name that is short enough for a line, shortened in its middle."""
    if len(name) > _NAME:
        name = f"{name[: _NAME // 2]}...{name[len(name) + 3 - _NAME // 2 :]}"
    return html_text(name)


def _summary(one: MetricSeries) -> str:
    finite = [point for point in one.points if math.isfinite(point[1])]
    if not finite:
        return "no finite value"
    low, high = min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
    if low[1] == high[1]:
        return f"always {number_text(low[1])}" if len(finite) > 1 else number_text(low[1])
    return (
        f"last {_last(one)}, lowest {number_text(low[1])} at step {low[0]:,.0f},"
        f" highest {number_text(high[1])} at {high[0]:,.0f}"
    )


def _last(one: MetricSeries) -> str:
    return number_text(one.points[-1][1]) if one.points else "-"


def _not_finite(job: str, one: MetricSeries) -> str:
    steps = [step for step, value in one.points if not math.isfinite(value)]
    if not steps:
        return ""
    where = f" of {html_text(job)}" if job else ""
    if len(steps) == 1:
        return f'<p class="bad">NaN or infinite{where} at step {steps[0]:,.0f}</p>'
    return (
        f'<p class="bad">NaN or infinite{where} at {len(steps):,} steps, first {steps[0]:,.0f}</p>'
    )


def _bands(job: JobFacts) -> list[Band]:
    """The steps that were done again."""
    bands = []
    for before, after in itertools.pairwise(job.history.runs):
        if before.redone_steps:
            low, high = after.began_step, before.last_step
            title = f"{before.redone_steps:,} steps, {low:,} to {high:,}, were done again"
            bands.append(Band(low, high, title))
    return bands


def _marks(job: JobFacts) -> list[ChartMark]:
    """The checkpoints that are kept, if the lines are not just of those."""
    return [
        ChartMark(item.manifest.step, f"{item.name}, step {item.manifest.step:,}")
        for item in (job.items if job.metrics_of != "checkpoints" else ())
        if abs(item.manifest.step) <= MOST_STEPS
    ]


def metric_order(name: str) -> tuple[bool, bool, str]:
    """Sort key: losses first, what saves cost last."""
    lower = name.lower()
    return "loss" not in lower, lower.startswith("checkpoint/"), name
