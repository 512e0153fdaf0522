"""The command that stops jobs: it asks their runners, on whatever machine, and waits for them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.commands.protect_delete import confirm, user_name, yes_option
from bt_lightning.cli.job_place import JobPlace
from bt_lightning.cli.target_options import (
    directory_option,
    project_option,
    store_option,
    text_or_json_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.job_record import JobRecord
    from bt_lightning.manage.stop_job import Node

_POLL_S = 1.0
_ANSWER_S = 30.0
"""A runner looks for requests each 5 s: after so long without an answer it may be gone."""


@click.command("stop")
@click.argument("job_id", required=False)
@store_option
@project_option
@directory_option
@click.option("--all", "every", is_flag=True, help="Stop every running job of the store.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Kill its processes after so many seconds; by default they may save as long as they need.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the end; 0 only asks.",
)
@yes_option
@text_or_json_option
def stop_jobs(
    job_id: str | None,
    store: str | None,
    project: str | None,
    directory: str | None,
    every: bool,
    grace_s: float | None,
    timeout_s: float,
    yes: bool,
    output_format: str,
) -> None:
    """Stop a job that `bt-lightning run` started, on any machine that sees its store or directory.

    Its runner does as at SIGTERM, within seconds: the training saves and ends, what it saved is
    sent, no attempt follows, and the job is STOPPED. The next start of the job goes on from there.
    Exits with 1 if it has not ended in time.
    """
    from bt_lightning.cli.render.table_csv_json import as_json
    from bt_lightning.errors import CheckpointNotFoundError

    if every:
        if job_id is not None:
            msg = "name one job, or --all of them"
            raise click.UsageError(msg)
        places = _running(store, project, yes=yes)
    else:
        places = [JobPlace(job_id, store, project, directory)]
    nodes = []
    for place in places:
        found = place.nodes()
        if not found:
            msg = (
                f"{place.missing('runner')}: only what `bt-lightning run` started can be stopped"
                " from here. Send SIGTERM to another training, and it saves and ends"
            )
            raise CheckpointNotFoundError(msg)
        nodes += found
    asked = _ask(nodes, grace_s)
    ended = _wait(asked, timeout_s) if timeout_s else {}
    if output_format == "json":
        last = {id(node): ended.get(index) for index, node in enumerate(asked)}
        as_json({"jobs": [_row(node, last) for node in nodes]})
    if timeout_s and len(ended) < len(asked):
        sys.exit(1)


def _running(store: str | None, project: str | None, *, yes: bool) -> list[JobPlace]:
    """The jobs of a store whose runners have not said that they are over."""
    from bt_lightning.cli.commands.jobs import jobs_of_store, open_named_store

    opened = open_named_store(store)
    found = [
        job
        for job in jobs_of_store(opened, project)
        if job.record is not None and not job.record.over
    ]
    if not found:
        _say("no job is running")
        return []
    names = ", ".join(f"{job.job} ({job.project})" for job in found)
    confirm(f"Stop {names}?", f"this stops {names}", yes=yes)
    return [JobPlace(job.job, store, job.project, None) for job in found]


def _ask(nodes: Sequence[Node], grace_s: float | None) -> list[Node]:
    """Ask the runners of those that run; return them, or say why not."""
    import socket

    from bt_lightning.cli.render.text import short_time
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.manage.stop_job import ask_to_stop

    by = "@".join(filter(None, (user_name(), socket.gethostname())))
    running = [node for node in nodes if not node.record.over]
    for node in nodes:
        record = node.record
        if record.over:
            _say(f"{_name(node, nodes)} has ended already: {_end(record)}")
        elif not node.takes_requests:
            msg = (
                f"the runner of {_name(node, nodes)} takes no requests: it is of an earlier"
                f" version. Send it SIGTERM on {record.host}"
            )
            raise InvalidSettingError(msg)
    for node in running:
        ask_to_stop(node, by, grace_s)
        heard = f"last heard of {short_time(node.record.updated_at)}"
        _say(f"{_name(node, nodes)} is asked to stop: it runs on {node.record.host}, {heard}")
    return running


def _wait(nodes: Sequence[Node], timeout_s: float) -> dict[int, JobRecord | None]:
    """Wait until the runs have ended; return the last records of those that have, by index."""
    waiting = _Waiting(nodes)
    until = time.monotonic() + timeout_s
    while True:
        waiting.look()
        if len(waiting.ended) == len(nodes) or waiting.is_vain:
            return waiting.ended
        if time.monotonic() >= until:
            break
        time.sleep(_POLL_S)
    for index, node in enumerate(nodes):
        if index not in waiting.ended:
            _say(f"{_name(node, nodes)} has not ended within {timeout_s:.0f} s", fg="yellow")
    return waiting.ended


class _Waiting:
    """Looks at the records of runs that were asked to stop, and says what changes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.ended: dict[int, JobRecord | None] = {}
        """The last records of runs that have ended, by index."""
        self.is_vain = False
        """Whether a runner is probably gone."""
        self._nodes = nodes
        self._began = time.monotonic()
        self._heard: set[int] = set()

    def look(self) -> None:
        """Read the records once more."""
        from bt_lightning.errors import StoreTransientError

        for index, node in enumerate(self._nodes):
            if index in self.ended:
                continue
            try:
                self._see(index, node, node.read())
            except StoreTransientError as error:
                _say(f"{error}: trying again", fg="yellow")

    def _see(self, index: int, node: Node, record: JobRecord | None) -> None:
        from bt_lightning.manage.stop_job import has_ended

        name = _name(node, self._nodes)
        if has_ended(node, record):
            self.ended[index] = record
            _say(f"{name}: {_end(record) if record else 'it has ended'}")
        elif record is not None and index not in self._heard:
            if record.stop_asked_by:
                self._heard.add(index)
                _say(f"{name} saves and ends")
            elif time.monotonic() - self._began > _ANSWER_S:
                self._heard.add(index)
                self._miss(name, record)

    def _miss(self, name: str, record: JobRecord) -> None:
        """A runner has not answered; say so if it has been silent for long before as well."""
        from datetime import datetime, timezone

        from bt_lightning.cli.render.text import short_time
        from bt_lightning.manage.stop_job import SILENT_S, silent_s

        if silent_s(record.updated_at, datetime.now(timezone.utc)) > SILENT_S:
            last = short_time(record.updated_at)
            _say(f"{name} was last heard of {last}: its machine is probably gone", fg="yellow")
            self.is_vain = True


def _name(node: Node, nodes: Sequence[Node]) -> str:
    several = any(one is not node and one.record.job_id == node.record.job_id for one in nodes)
    return f"job {node.record.job_id}" + (f", node {node.rank}," if several else "")


def _end(record: JobRecord) -> str:
    """How a job stands, as a runner says it."""
    newest = record.newest_checkpoint
    at = f", newest checkpoint {newest} (step {record.newest_step})" if newest else ""
    waiting = f"; not in the store: {', '.join(record.waiting)}" if record.waiting else ""
    again = "" if record.over else ", by another run of it"
    return f"{record.status}{again}{at}{waiting}"


def _row(node: Node, last: dict[int, JobRecord | None]) -> dict[str, object]:
    """A node for JSON; `last` has the last records of those that were asked, by identity."""
    record = last.get(id(node)) or node.record
    return {
        "project": record.project,
        "job_id": record.job_id,
        "node_rank": node.rank,
        "asked": id(node) in last,
        "status": record.status,
        "checkpoint_sync_status": record.checkpoint_sync_status,
        "newest_checkpoint": record.newest_checkpoint,
        "ended_at": record.ended_at,
    }


def _say(text: str, fg: str | None = None) -> None:
    from bt_lightning.cli.render.text import printable

    click.secho(printable(text), fg=fg, err=True)
