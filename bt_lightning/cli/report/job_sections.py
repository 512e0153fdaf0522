"""The parts of the report about one job: figures, saves, runs, failures, checkpoints. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from bt_lightning.cli.render.event_text import event_time
from bt_lightning.cli.render.text import short_time
from bt_lightning.cli.report.chart_scale import number_text
from bt_lightning.cli.report.svg_chart import NUM_COLOURS, Line, bar_chart, html_text, line_chart
from bt_lightning.human_units import human_duration, human_size

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.job_facts import JobFacts
    from bt_lightning.manage.run_history import Run
    from bt_lightning.manage.save_times import SaveTimes

_MOST_ROWS: Final = 200
_METRICS: Final = 4
_SHORT: Final = 28
"""Characters of a cell that is not broken into lines."""
_FAILURE: Final = 80
_MEGABYTE, _MS = 1e6, 1000.0


def figures(job: JobFacts) -> str:
    """The figures that somebody asks for first."""
    newest = job.items[0].manifest.step if job.items else None
    size = human_size(sum(item.manifest.size for item in job.items))
    tiles = [
        ("newest step", "none" if newest is None else f"{newest:,}", _reached(job)),
        ("checkpoints kept", f"{len(job.items):,}", f"{size} in all"),
    ]
    if not job.history.known:
        tiles.append(("restarts, saves, failures", "not known", "there are no events"))
    else:
        tiles += [*_run_figures(job), *_save_figures(job)]
    html = "".join(
        f"<div><span>{html_text(name)}</span><b>{html_text(value)}</b><small>{html_text(more)}</small></div>"
        for name, value, more in tiles
    )
    return f'<div class="tiles">{html}</div>'


def _reached(job: JobFacts) -> str:
    last = max((run.last_step for run in job.history.runs), default=None)
    newest = job.items[0].manifest.step if job.items else None
    return "" if last in {None, newest} else f"training reached {last:,}"


def _run_figures(job: JobFacts) -> list[tuple[str, str, str]]:
    history = job.history
    lost = (
        f"{counted(history.redone_steps, 'step')} done again"
        if history.redone_steps
        else "nothing was lost"
    )
    if history.redone_s >= 1:
        lost += f", about {human_duration(history.redone_s)}"
    failures = len(history.failures) + len(job.other_failures)
    said = "" if failures else "none in the events"
    if history.failures:
        last = history.failures[-1][1]
        said = last if len(last) <= _FAILURE else f"{last[:_FAILURE]}..."
    tiles = [
        ("restarts", f"{history.restarts:,}", lost if history.restarts else ""),
        ("failures", f"{failures:,}", said),
    ]
    if not history.runs:
        tiles[0] = ("restarts", "not known", "no event says that a run began")
    else:
        training = math.fsum(max(0.0, run.last_at - run.began_at) for run in history.runs)
        whole = history.runs[-1].last_at - history.runs[0].began_at
        more = f"of {human_duration(max(0.0, whole))} from first to last"
        tiles.insert(0, ("training", human_duration(training), more))
    return tiles


def _save_figures(job: JobFacts) -> list[tuple[str, str, str]]:
    sent = math.fsum(save.size or 0.0 for save in job.saves if save.store_at is not None)
    written = math.fsum(save.size or 0.0 for save in job.saves if save.disk_at is not None)
    lags = [save.store_s for save in job.saves if save.store_s is not None]
    tiles = [
        (
            "training waited for saves",
            f"{job.history.stall_s:.2f} s",
            counted(job.history.saves, "save") + _mean(job),
        ),
        ("written to the disk", human_size(written), f"{human_size(sent)} sent to the store"),
    ]
    if lags:
        middle = sorted(lags)[len(lags) // 2]
        tiles.append(("save to store", f"{middle:.1f} s", f"median; {max(lags):.1f} s at most"))
    return tiles


def _mean(job: JobFacts) -> str:
    return (
        f", {_MS * job.history.stall_s / job.history.saves:.1f} ms on average"
        if job.history.saves
        else ""
    )


def save_charts(job: JobFacts) -> str:
    """What saves cost, when they were durable, and their sizes, each over the saves."""
    if not job.saves:
        return (
            ""
            if job.history.known
            else ('<h2>Saves</h2><p class="note">Not known: there are no events of the job.</p>')
        )
    numbered = list(enumerate(job.saves, 1))
    stalls = [(float(n), _MS * s.stall_s, _named(s)) for n, s in numbered if s.stall_s is not None]
    sizes = [(float(n), s.size / _MEGABYTE, _named(s)) for n, s in numbered if s.size]
    disk = [(float(n), s.disk_s) for n, s in numbered if s.disk_s is not None]
    store = [(float(n), s.store_s) for n, s in numbered if s.store_s is not None]
    ends = [Line(points, colour) for points, colour in ((disk, 0), (store, 1)) if points]
    keys = [("s0", "on the disk", disk), ("s1", "in the store", store)]
    key = "".join(f'<li class="{c}"><i></i>{name}</li>' for c, name, points in keys if points)
    cards = [
        (
            "Training waited, in ms",
            "",
            bar_chart(stalls, "milliseconds that training waited for each save", "save"),
        ),
        (
            "Seconds until durable",
            f'<ul class="key">{key}</ul>',
            line_chart(ends, "seconds from each save until it was durable", "save", zero=True),
        ),
        ("Size, in MB", "", bar_chart(sizes, "megabytes of each save", "save", colour=2)),
    ]
    html = "".join(
        f'<div class="card"><h3>{name}</h3>{more}{drawn}</div>'
        for name, more, drawn in cards
        if drawn
    )
    said = f"{counted(len(job.saves), 'save')}, in the order in which they began."
    return f'<h2>Saves</h2><p class="note">{said}</p><div class="charts">{html}</div>'


def _named(save: SaveTimes) -> str:
    return save.checkpoint if save.step is None else f"{save.checkpoint}, step {save.step:,}"


def runs_table(job: JobFacts) -> str:
    """The runs, if there are several."""
    runs = job.history.runs
    if len(runs) < 2:  # noqa: PLR2004 - the figures say all of one
        return ""
    rows = [_run_row(number, run, is_last=run is runs[-1]) for number, run in enumerate(runs, 1)]
    names = ("Run", "Began", "Host", "From step", "To step", "Training", "End", "Done again")
    shown = html_table(names, rows[-_MOST_ROWS:], right={3, 4, 5, 7})
    return f"<h2>Runs</h2>{shown}{_left_out(len(rows))}"


def _run_row(number: int, run: Run, *, is_last: bool) -> list[str]:
    end = {"ended": "ended", "failed": "ended with an error", "preempted": "preempted"}.get(run.end)
    silent = f"last heard of {event_time(run.last_at)[11:]}"
    again = ""
    if run.redone_steps:
        took = f", {human_duration(run.redone_s)}" if run.redone_s >= 1 else ""
        again = f"{counted(run.redone_steps, 'step')}{took}"
    return [
        f"{number:,}",
        event_time(run.began_at),
        run.host,
        f"{run.began_step:,}",
        f"{run.last_step:,}",
        human_duration(max(0.0, run.last_at - run.began_at)),
        end or run.outcome or (silent if is_last else "without a word"),
        again,
    ]


def failures_list(job: JobFacts) -> str:
    """What went wrong, the newest first, as far as it is known."""
    found = [(at, words) for at, words in job.history.failures]
    found += [(at, f"node {rank}: {words}") for rank, at, words in job.other_failures]
    rows = [[event_time(at), words] for at, words in sorted(found, reverse=True)]
    rows += [["", f"damaged: {reason}"] for reason in job.refused]
    said = ""
    if not job.history.known:
        said = '<p class="note">Not known: there are no events of the job.</p>'
    elif not rows:
        said = '<p class="note">None in the events.</p>'
    shown = html_table(("Time", "What"), rows[:_MOST_ROWS], wide=1) if rows else ""
    return f"<h2>Failures</h2>{said}{shown}{_left_out(len(rows))}"


def checkpoints_table(job: JobFacts) -> str:
    """The checkpoints that are kept, newest first."""
    if not job.items:
        return '<h2>Checkpoints</h2><p class="note">None is committed.</p>'
    names = ("Name", "Step", "Size", "Created", "On disk after", "In store after", "Metrics", "")
    newest = {save.checkpoint: save for save in job.saves}
    rows = [_checkpoint_row(item, newest) for item in job.items[:_MOST_ROWS]]
    shown = html_table(names, rows, right={1, 2, 4, 5}, wide=6)
    return f"<h2>Checkpoints</h2>{shown}{_left_out(len(job.items))}"


def _checkpoint_row(item: CheckpointItem, saves: dict[str, SaveTimes]) -> list[str]:
    manifest, save = item.manifest, saves.get(item.manifest.checkpoint_id)
    metrics = [f"{name} {number_text(value)}" for name, value in manifest.metrics.items()]
    more = ", ..." if len(metrics) > _METRICS else ""
    return [
        item.name,
        f"{manifest.step:,}",
        human_size(manifest.size),
        short_time(manifest.created_at),
        _seconds(save.disk_s if save else None),
        _seconds(save.store_s if save else None),
        ", ".join(metrics[:_METRICS]) + more,
        "protected" if item.protected else "",
    ]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def html_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    *,
    wide: int | None = None,
    chips: bool = False,
) -> str:
    """A table, whose rows are small lists on a narrow screen; columns `right` are numbers.

    The column `wide` takes the room that is left. With `chips` each row begins with a colour,
    in the order of the lines of charts.
    """
    head = "".join(
        f'<th class="{"n" if n in right else "wide" if n == wide else "t"}">{html_text(name)}</th>'
        for n, name in enumerate(names)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n " if n in right else ""}{"t" if len(cell) <= _SHORT else "w"}"'
            f' data-name="{html_text(names[n])}">'
            f"{_with_chip(number, cell) if chips and not n else html_text(cell)}</td>"
            for n, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _with_chip(number: int, cell: str) -> str:
    return f'<span><i class="s{number % NUM_COLOURS}"></i>{html_text(cell)}</span>'


def counted(number: int, word: str) -> str:
    """`1 save`, `1,200 saves`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _left_out(count: int) -> str:
    more = count - _MOST_ROWS
    return f'<p class="note">{more:,} older ones are left out.</p>' if more > 0 else ""
