"""The HTML report of jobs: metrics, restarts, saves on their way, failures. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from bt_lightning.cli.render.event_text import event_time
from bt_lightning.cli.render.text import short_time
from bt_lightning.cli.report.chart_scale import number_text
from bt_lightning.cli.report.job_sections import (
    checkpoints_table,
    counted,
    failures_list,
    figures,
    html_table,
    runs_table,
    save_charts,
)
from bt_lightning.cli.report.metric_charts import metric_charts, metric_order
from bt_lightning.cli.report.page_style import STYLE
from bt_lightning.cli.report.svg_chart import NUM_COLOURS, html_text
from bt_lightning.cli.report.time_line import time_line
from bt_lightning.human_units import human_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.job_facts import JobFacts

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser runs and fetches nothing, even if a name of a job or a metric were to become markup."""
_METRICS: Final = 3
"""Metrics in the comparison of jobs."""


def page(jobs: Sequence[JobFacts], made_at: str, version: str) -> str:
    """The page about one job or several, as HTML that needs nothing else.

    `made_at` is an ISO 8601 time in UTC, `version` that of bt_lightning.
    """
    name = jobs[0].job if len(jobs) == 1 else f"{len(jobs)} jobs"
    body = _one(jobs[0]) if len(jobs) == 1 else _several(jobs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html_text(_POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html_text(name)} - training report</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n<footer>bt_lightning {html_text(version)}, {short_time(made_at)}."
        " Times are UTC; steps are optimizer steps.</footer>\n</body></html>\n"
    )


def _one(job: JobFacts) -> str:
    parts = [f"<h1>{html_text(job.job)}</h1>", _subtitle(job), figures(job), time_line(job)]
    parts += [metric_charts([job]), *_rest(job)]
    return "\n".join(part for part in parts if part)


def _several(jobs: Sequence[JobFacts]) -> str:
    parts = [f"<h1>{len(jobs)} jobs</h1>", _comparison(jobs), metric_charts(jobs)]
    for number, job in enumerate(jobs):
        name = f'<h1 class="s{number % NUM_COLOURS}">{html_text(job.job)}</h1>'
        inner = "\n".join([time_line(job), *_rest(job)])
        parts.append(
            f"<section>{name}{_subtitle(job)}{figures(job)}"
            f"<details><summary>Time line, saves, failures, checkpoints</summary>{inner}</details>"
            "</section>"
        )
    return "\n".join(parts)


def _rest(job: JobFacts) -> list[str]:
    return [save_charts(job), runs_table(job), failures_list(job), checkpoints_table(job)]


def _subtitle(job: JobFacts) -> str:
    said = f'<p class="sub">Project {html_text(job.project)}, {html_text(job.where)}</p>'
    said += f'<p class="sub">{html_text(_state(job))}</p>'
    if job.is_cut:
        said += '<p class="note">Parts of the logs are kept no more: there are gaps.</p>'
    return said


def _state(job: JobFacts) -> str:
    """How the job stands, by its runner's record, else by its events."""
    if job.record is not None:
        ended = f" {short_time(job.record.ended_at)}" if job.record.ended_at else ""
        heard = "" if job.record.over else f", last heard of {short_time(job.record.updated_at)}"
        return f"{job.record.status}{ended}{heard}; began {short_time(job.record.created_at)}"
    if not job.history.runs:
        return "How it ended is not known: there are no events of a run."
    first, last = job.history.runs[0], job.history.runs[-1]
    end = {"ended": "Ended", "failed": "Ended with an error", "preempted": "Preempted"}
    how = end.get(last.end, "Last heard of")
    return f"{how} {event_time(last.last_at)}; began {event_time(first.began_at)}"


def _comparison(jobs: Sequence[JobFacts]) -> str:
    """A row for each job; its colour is that of its lines."""
    known = sorted({name for job in jobs for name in job.metrics}, key=metric_order)
    metrics = known[:_METRICS]
    names = ["Job", "Newest step", "Training", "Restarts", "Done again", "Failures", "Saves cost"]
    rows = [[job.job, *_compared(job), *_values(job, metrics)] for job in jobs]
    right = range(1, len(names) + len(metrics))
    return html_table([*names, *metrics], rows, right, chips=True)


def _compared(job: JobFacts) -> list[str]:
    history = job.history
    newest = f"{job.items[0].manifest.step:,}" if job.items else "none"
    if not history.known:
        return [newest, *["not known"] * 5]
    training = math.fsum(max(0.0, run.last_at - run.began_at) for run in history.runs)
    return [
        newest,
        human_duration(training),
        f"{history.restarts:,}",
        counted(history.redone_steps, "step"),
        f"{len(history.failures) + len(job.other_failures):,}",
        f"{history.stall_s:.2f} s",
    ]


def _values(job: JobFacts, metrics: Sequence[str]) -> list[str]:
    found = (job.metrics.get(name) for name in metrics)
    return [number_text(one.points[-1][1]) if one and one.points else "" for one in found]
