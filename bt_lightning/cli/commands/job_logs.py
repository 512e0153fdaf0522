"""The commands for the logs of a job: logs (what it printed), events, metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.job_place import JobPlace
from bt_lightning.cli.target_options import (
    CHOSEN_FORMAT,
    directory_option,
    format_option,
    project_option,
    store_option,
    text_or_json_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manage.job_logs import JobLog, Logged

_STORE_S, _DISK_S = 5.0, 1.0
"""Seconds between two looks with --follow."""
_COLUMNS = 8
_job_argument = click.argument("job_id", required=False)
_node_option = click.option("--node", type=click.IntRange(min=0), help="Only this node.")
_tail_option = click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N."
)


@click.command("logs")
@_job_argument
@store_option
@project_option
@directory_option
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends, or Ctrl-C.")
@_tail_option
@_node_option
@click.option("--attempt", type=click.IntRange(min=0), help="Only this attempt.")
@click.option("--timestamps", is_flag=True, help="Print the time before each line.")
@text_or_json_option
def show_logs(
    job_id: str | None,
    store: str | None,
    project: str | None,
    directory: str | None,
    follow: bool,
    tail: int | None,
    node: int | None,
    attempt: int | None,
    timestamps: bool,
    output_format: str,
) -> None:
    """Print what the commands of a job printed, under `bt-lightning run`.

    From the store it comes some 20 seconds late, and is there when the machine is gone. Standard
    output and error are one log, without colours; values of secrets are hidden. With -o json each
    line is an object on a line of its own.
    """
    from bt_lightning.errors import CheckpointNotFoundError
    from bt_lightning.log_kinds import OUTPUT

    place = JobPlace(job_id, store, project, directory)
    printer = _Printer(attempt, timestamps=timestamps, as_json=output_format == "json")
    log = place.log(OUTPUT, node)
    found = log.new(tail if attempt is None else None)
    chosen = [one for one in found if printer.takes(one)]
    if not found and not follow:
        raise CheckpointNotFoundError(place.missing("output"))
    printer.show(chosen if tail is None else chosen[len(chosen) - min(tail, len(chosen)) :])
    if follow:
        _follow(place, log, printer.show)


def _follow(place: JobPlace, log: JobLog, show: Callable[[list[Logged]], None]) -> None:
    """Show what comes, until the job is over and nothing comes any more."""
    from bt_lightning.errors import StoreTransientError

    while True:
        over = False
        try:
            record = place.record()
            over = record is not None and record.over
            show(log.new())
        except StoreTransientError as error:
            click.secho(f"{error}: trying again", fg="yellow", err=True)
        if over and record is not None:
            click.secho(f"job {place.job}: {record.status}", dim=True, err=True)
            return
        time.sleep(_STORE_S if place.store is not None else _DISK_S)


class _Printer:
    """Prints lines of output as they come."""

    def __init__(self, attempt: int | None, *, timestamps: bool, as_json: bool) -> None:
        self._attempt, self._timestamps, self._as_json = attempt, timestamps, as_json
        self._last: object = None
        self._nodes: set[int] = set()

    def takes(self, one: Logged) -> bool:
        """Whether it is of the attempt that was asked for."""
        return self._attempt is None or one.event.get("attempt") == self._attempt

    def show(self, logged: list[Logged]) -> None:
        """Print what is taken of it."""
        from bt_lightning.cli.render.event_text import event_text, event_time
        from bt_lightning.cli.render.text import printable

        self._nodes |= {one.node_rank for one in logged}
        for one in filter(self.takes, logged):
            event = one.event
            if self._as_json:
                if click.get_current_context().meta.get(CHOSEN_FORMAT) != "none":
                    click.echo(json_line({"node_rank": one.node_rank, **event}))
                continue
            left_out = event["event"] == "left_out"
            text = f"... {event_text(event)}" if left_out else str(event.get("text", ""))
            attempt = self._last if left_out else event.get("attempt")
            if attempt != self._last and self._last is not None:
                click.secho(f"--- attempt {attempt}, {event_time(one.at)} ---", dim=True)
            self._last = attempt
            node = f"[node {one.node_rank}] " if len(self._nodes) > 1 else ""
            at = f"{event_time(one.at)} " if self._timestamps else ""
            click.echo(f"{at}{node}{printable(text, keep=chr(9))}")


@click.command("events")
@_job_argument
@store_option
@project_option
@directory_option
@click.option("--kind", "kinds", multiple=True, metavar="WORD", help="Only events of this kind.")
@_tail_option
@_node_option
@format_option
def show_events(
    job_id: str | None,
    store: str | None,
    project: str | None,
    directory: str | None,
    kinds: tuple[str, ...],
    tail: int | None,
    node: int | None,
    output_format: str,
) -> None:
    """List what happened to a job: runs, attempts, saves, uploads, failures; the oldest first."""
    from bt_lightning.cli.render.event_text import event_text, event_time
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.errors import CheckpointNotFoundError
    from bt_lightning.log_kinds import EVENTS

    place = JobPlace(job_id, store, project, directory)
    found = place.log(EVENTS, node).new()
    if not found:
        raise CheckpointNotFoundError(place.missing("events"))
    chosen = [one for one in found if not kinds or one.event["event"] in kinds]
    if tail is not None:
        chosen = chosen[len(chosen) - min(tail, len(chosen)) :]
    if output_format == "json":
        rows = [{"node_rank": one.node_rank, **one.event, "at": _iso(one.at)} for one in chosen]
        as_json({"job_id": place.job, "total_events": len(rows), "events": rows})
    elif output_format == "csv":
        cells = ([_iso(o.at), o.node_rank, o.event["event"], event_text(o.event)] for o in chosen)
        as_csv(("Time", "Node", "Event", "What"), list(cells))
    else:
        several = len({one.node_rank for one in chosen}) > 1
        columns = (
            Column("Time", lambda one: event_time(one.at)),
            Column("Node", lambda one: str(one.node_rank) if several else "", hide_empty=True),
            Column("Event", lambda one: one.event["event"]),
            Column("What", lambda one: event_text(one.event)),
        )
        table(f"Events of the job {place.job}", columns, chosen)


@click.command("metrics")
@_job_argument
@store_option
@project_option
@directory_option
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Only these metrics.")
@_tail_option
@click.option("--all", "everything", is_flag=True, help="Also steps that a restart did again.")
@format_option
def show_metrics(
    job_id: str | None,
    store: str | None,
    project: str | None,
    directory: str | None,
    names: tuple[str, ...],
    tail: int | None,
    everything: bool,
    output_format: str,
) -> None:
    """Print the metrics of a job at every logged step.

    Steps are optimizer steps. What a restart did again is there once, as it was done last.
    """
    from fnmatch import fnmatchcase

    from bt_lightning.cli.render.event_text import metric_rows
    from bt_lightning.cli.render.table_csv_json import as_csv, as_json
    from bt_lightning.errors import CheckpointNotFoundError
    from bt_lightning.log_kinds import METRICS

    place = JobPlace(job_id, store, project, directory)
    rows = metric_rows(place.log(METRICS).new(), everything=everything)
    if not rows:
        raise CheckpointNotFoundError(place.missing("metrics"))
    known = dict.fromkeys(name for row in rows for name in row["values"])
    shown = [n for n in known if not names or any(fnmatchcase(n, glob) for glob in names)]
    if names:
        rows = [row for row in rows if any(name in row["values"] for name in shown)]
    if tail is not None:
        rows = rows[len(rows) - min(tail, len(rows)) :]
    if output_format == "json":
        listed = [
            {**row, "at": _iso(row["at"]), "values": {n: row["values"].get(n) for n in shown}}
            for row in rows
        ]
        as_json({"job_id": place.job, "total_rows": len(listed), "rows": listed})
    elif output_format == "csv":
        cells = [
            [row["step"], row["epoch"], _iso(row["at"]), *(row["values"].get(n, "") for n in shown)]
            for row in rows
        ]
        as_csv(("Step", "Epoch", "Time", *shown), cells)
    else:
        _metrics_table(place.job, rows, shown)


def _metrics_table(job: str, rows: list[dict[str, Any]], names: list[str]) -> None:
    from bt_lightning.cli.render.event_text import event_time
    from bt_lightning.cli.render.table_csv_json import Column, table

    def value(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: f"{row['values'][name]:.6g}" if name in row["values"] else ""

    columns = (
        Column("Step", lambda row: f"{row['step']:,}", right=True),
        Column("Epoch", _epoch, right=True, hide_empty=True),
        Column("Time", lambda row: event_time(row["at"]), rank=1),
        *(Column(n, value(n), right=True, rank=2 + i) for i, n in enumerate(names[:_COLUMNS])),
    )
    table(f"Metrics of the job {job}", columns, rows)
    if len(names) > _COLUMNS:
        click.secho(f"{len(names) - _COLUMNS} more metrics: --name, -o csv or -o json", dim=True)


def _epoch(row: dict[str, Any]) -> str:
    return f"{row['epoch']:g}" if isinstance(row["epoch"], int | float) else ""


def json_line(event: dict[str, Any]) -> str:
    """One event as a line of JSON, ASCII; numbers that are not finite as text."""
    import json

    from bt_lightning.cli.render.table_csv_json import json_number

    flat = {n: json_number(v) if isinstance(v, float) else v for n, v in event.items()}
    return json.dumps(flat)


def _iso(at: float) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(at, timezone.utc).isoformat()
