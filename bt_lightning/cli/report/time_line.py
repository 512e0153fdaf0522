"""What happened to a job over time: steps, saves on their way, restarts, pauses, failures. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from bt_lightning.cli.render.event_text import event_time
from bt_lightning.cli.report.chart_scale import scale_of, thinned
from bt_lightning.cli.report.clock_scale import clock_scale
from bt_lightning.cli.report.svg_chart import SIDE, framed, grid, html_text, x_labels, y_labels
from bt_lightning.human_units import human_duration, human_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.cli.report.chart_scale import Scale
    from bt_lightning.cli.report.clock_scale import ClockScale
    from bt_lightning.manage.job_facts import JobFacts
    from bt_lightning.manage.run_history import Run
    from bt_lightning.manage.save_times import SaveTimes

_LANES: Final = 0.36
"""Part of the height below the line of steps, for lanes."""
_DISK, _STORE, _FAILED = 735, 840, 945
"""Heights of the lanes."""
_MOST: Final = 400
"""Shapes of one kind."""
_DOTS: Final = 60
"""So many saves or fewer are dots on the line of steps as well."""
_BUCKETS: Final = 300
_NAMED_PAUSES: Final = 5
_MANY_RUNS: Final = 40


def time_line(job: JobFacts) -> str:
    """The time line of a job as HTML; an empty text if nothing is known of its runs."""
    runs = job.history.runs
    if not runs:
        return ""
    clock = clock_scale([*((run.began_at, run.last_at) for run in runs), *_ways(job.saves)])
    steps = [step for run in runs for step in (run.began_step, run.last_step)]
    began = event_time(clock.knots[0][0])
    up = scale_of([float(step) for step in [0, *steps]], zero=True)
    drawn = [
        *_away(runs, clock),
        *_again(runs, clock),
        grid(up, _LANES, whole=True),
        *(_line(run, clock, up) for run in runs[-_MOST:]),
        *_saves(job.saves, clock, up),
        *_lane(job.saves, clock, "disk"),
        *_lane(job.saves, clock, "store"),
        *_failures(job.history.failures, clock),
    ]
    lanes = [
        ("disk", _DISK, any(save.disk_at is not None for save in job.saves)),
        ("store", _STORE, any(save.store_at is not None for save in job.saves)),
        ("failures", _FAILED, bool(job.history.failures)),
    ]
    around = [
        y_labels(up, _LANES, whole=True),
        *(
            f'<span class="lane" style="top:{100 * y / SIDE:.1f}%">{name}</span>'
            for name, y, is_used in lanes
            if is_used
        ),
        *(
            f'<span class="gap" style="left:{50 * (one.low + one.high):.2f}%">'
            f"{human_duration(one.seconds)}</span>"
            for one in (clock.pauses if len(clock.pauses) <= _NAMED_PAUSES else ())
        ),
        x_labels(clock.ticks(), "UTC" if clock.is_long else f"{began[:10]}, UTC"),
    ]
    plot = framed(
        "".join(drawn), f"steps, saves and failures of {job.job} over time", "".join(around), "time"
    )
    return f'<h2>Time line</h2><div class="card">{_key(job)}{plot}</div>'


def _key(job: JobFacts) -> str:
    """What the shapes mean, of those that are there."""
    history = job.history
    entries = [("s0", "optimizer step of the run")]
    if job.saves:
        entries.append(("s2", "a save, from its call to durable"))
    if history.redone_steps:
        entries.append(("redo", "work that was done again"))
    if len(history.runs) > 1:
        entries.append(("away", "no training"))
    if history.failures:
        entries.append(("fail", "failure"))
    return f'<ul class="key">{"".join(f"<li><i class={c!r}></i>{t}</li>" for c, t in entries)}</ul>'


def _ways(saves: Sequence[SaveTimes]) -> Iterable[tuple[float, float]]:
    for save in saves:
        ends = [at for at in (save.disk_at, save.store_at) if at is not None]
        yield save.began_at, max([save.began_at, *ends])


def _away(runs: Sequence[Run], clock: ClockScale) -> list[str]:
    drawn = []
    for before, after in list(itertools.pairwise(runs))[-_MOST:]:
        seconds = max(0.0, after.began_at - before.last_at)
        title = f"no training for {human_duration(seconds)}"
        drawn.append(_band("away", clock.at(before.last_at), clock.at(after.began_at), title))
    return drawn


def _again(runs: Sequence[Run], clock: ClockScale) -> list[str]:
    drawn = []
    for run in runs:
        if run.redone_steps:
            low, high = clock.at(run.last_at - run.redone_s), clock.at(run.last_at)
            took = f", {human_duration(run.redone_s)}" if run.redone_s >= 1 else ""
            title = f"{run.redone_steps:,} steps{took}: done again by the next run"
            drawn.append(_band("redo", low, high, title))
    return drawn[-_MOST:]


def _band(css: str, low: float, high: float, title: str) -> str:
    width = max(2.0, SIDE * (high - low))
    return (
        f'<rect class="{css}" x="{SIDE * low:.1f}" y="0" width="{width:.1f}" height="{SIDE}">'
        f"<title>{html_text(title)}</title></rect>"
    )


def _line(run: Run, clock: ClockScale, up: Scale) -> str:
    points = [(at, float(step)) for at, step in sorted(run.steps)]
    lines = thinned(points, _BUCKETS if len(points) < _MANY_RUNS else _BUCKETS // 2)
    path = "".join(
        f"M{'L'.join(_place(clock.at(at), up.at(step)) for at, step in line)}" for line in lines
    )
    return f'<path class="l s0" d="{path}"/>'


def _place(across: float, up: float) -> str:
    return f"{SIDE * across:.1f} {SIDE * (1 - _LANES) * (1 - up):.1f}"


def _saves(saves: Sequence[SaveTimes], clock: ClockScale, up: Scale) -> list[str]:
    drawn: dict[str, str] = {}
    for save in saves if len(saves) <= _DOTS else ():
        if save.step is not None and up.low <= save.step <= up.high:
            place = _place(clock.at(save.began_at), up.at(save.step))
            title = html_text(_told(save))
            drawn[place] = f'<path class="l s2 dot" d="M{place}h0"><title>{title}</title></path>'
    return list(drawn.values())[-_MOST:]


def _told(save: SaveTimes) -> str:
    """All that is known of a save, as a line."""
    said = [save.checkpoint]
    if save.decision not in {"", "saved"}:
        said.append(save.decision)
    if save.size is not None:
        said.append(human_size(save.size))
    if save.stall_s is not None:
        said.append(f"training waited {1000 * save.stall_s:.1f} ms")
    if save.disk_s is not None:
        said.append(f"on the disk after {save.disk_s:.2f} s")
    if save.store_s is not None:
        said.append(f"in the store after {save.store_s:.2f} s")
    return ", ".join(said)


def _lane(saves: Sequence[SaveTimes], clock: ClockScale, place: str) -> list[str]:
    """The ways of saves to the disk, or to the store; those that coincide are drawn once."""
    y = _DISK if place == "disk" else _STORE
    drawn: dict[str, str] = {}
    for save in saves:
        end = save.disk_at if place == "disk" else save.store_at
        if end is not None:
            low, high = SIDE * clock.at(save.began_at), SIDE * clock.at(end)
            path = f"M{low:.0f} {y}H{max(high, low + 3):.0f}"
            drawn[path] = (
                f'<path class="span s2" d="{path}"><title>{html_text(_told(save))}</title></path>'
            )
    return list(drawn.values())[-_MOST:]


def _failures(failures: Sequence[tuple[float, str]], clock: ClockScale) -> list[str]:
    drawn: dict[str, str] = {}
    for at, what in failures:
        path = f"M{SIDE * clock.at(at):.0f} {_FAILED}h0"
        title = html_text(f"{event_time(at)}: {what}")
        drawn[path] = f'<path class="fail" d="{path}"><title>{title}</title></path>'
    return list(drawn.values())[-_MOST:]
