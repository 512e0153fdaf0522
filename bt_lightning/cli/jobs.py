"""The commands about jobs and projects of a store: list, show, delete."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.keeping import ask, dry_run_option, report, report_of, yes_option
from bt_lightning.cli.options import format_option, store_option

if TYPE_CHECKING:
    from bt_lightning.job_record import JobRecord
    from bt_lightning.manage.locate import StoredJob
    from bt_lightning.store.port import Store

_ATTEMPTS = 5
_project_option = click.option(
    "--project", help="Of this project.  [env: BT_TRAINING_PROJECT_NAME]"
)


@click.group()
def jobs() -> None:
    """List, show and delete the jobs of a store."""


@click.group()
def projects() -> None:
    """List, show and delete the projects of a store."""


@jobs.command("list")
@store_option
@_project_option
@format_option
def list_jobs(store: str | None, project: str | None, output_format: str) -> None:
    """List jobs with their newest step and size, the one that began last first."""
    _print_jobs("Jobs", _survey(_opened(store), project), output_format)


@jobs.command("show")
@click.argument("job_id")
@store_option
@_project_option
@format_option
def show_job(job_id: str, store: str | None, project: str | None, output_format: str) -> None:
    """Show one job: what its runner says, and its checkpoints, from its first to its newest."""
    from dataclasses import asdict

    from bt_lightning.cli.listing import records, render, sort_items
    from bt_lightning.cli.output import as_json
    from bt_lightning.manage.locate import Target, open_shelf, project_of

    opened = _opened(store)
    project = project_of(opened, project or _own_project(), job_id)
    found = _survey(opened, project, job_id)
    record = found[0].record if found else None
    if record is not None and output_format == "cli-table":
        for line in _said(record):
            click.echo(line)
        if not found[0].items:
            return
    target = Target(store=store, project=project, job=job_id)
    shelf = open_shelf(target, lambda text: click.secho(text, fg="yellow", err=True))
    items = sort_items(shelf, shelf.items(), "created", "asc")
    if output_format == "json":
        rows = records([(shelf, item) for item in items])
        job = None if record is None else asdict(record)
        listed = {"total_checkpoints": len(rows), "checkpoints": rows}
        as_json({"job_id": shelf.job, "job": job, **listed})
    else:
        render([(shelf, items)], output_format, shelf.job)


def _said(record: JobRecord) -> list[str]:
    """What a runner wrote of its job, for people."""
    from bt_lightning.cli.text import printable, short_time

    ended = f", ended {short_time(record.ended_at)}" if record.ended_at else ""
    silent = "" if record.over else f", last heard of {short_time(record.updated_at)}"
    sync = f", sync {record.checkpoint_sync_status}" if record.checkpoint_sync_status else ""
    lines = [
        f"{record.status}{sync} on {record.host}",
        f"began {short_time(record.created_at)}{ended}{silent}",
    ]
    for one in record.attempts[-_ATTEMPTS:]:
        code = f"signal {one.signal}" if one.signal else f"exit code {one.exit_code}"
        end = f"{one.outcome} with {code}" if one.ended_at else "is running"
        lines.append(f"attempt {one.number}, {short_time(one.started_at)}: {end}")
    if record.waiting:
        lines.append(f"not in the store: {', '.join(record.waiting)}")
    return [printable(line) for line in lines]


@jobs.command("delete")
@click.argument("job_id")
@store_option
@_project_option
@dry_run_option
@yes_option
@format_option
def delete_one_job(
    job_id: str,
    store: str | None,
    project: str | None,
    dry_run: bool,
    yes: bool,
    output_format: str,
) -> None:
    """Delete a job and its checkpoints, but for those that are protected.

    There is no way back. A job that is running is refused: stop it first. A deletion that was cut
    off is finished by the next call.
    """
    from bt_lightning.manage.delete import delete_job
    from bt_lightning.manage.locate import project_of

    opened = _opened(store)
    project = project_of(opened, project or _own_project(), job_id)
    found = _survey(opened, project, job_id)
    if dry_run:
        _dry(found, output_format)
        return
    size = sum(job.size for job in found)
    ask(f"the job {job_id} of {project}", job_id, size, _names(found), yes=yes)
    report_of(delete_job(opened, project, job_id), output_format)


@projects.command("list")
@store_option
@format_option
def list_projects(store: str | None, output_format: str) -> None:
    """List projects with their jobs and sizes."""
    from bt_lightning.cli.output import Column, as_csv, as_json, table
    from bt_lightning.cli.text import human_size, short_time

    by_name: dict[str, list[StoredJob]] = {}
    for job in _survey(_opened(store), None):
        by_name.setdefault(job.project, []).append(job)
    rows = [
        {
            "project": name,
            "jobs": len(own),
            "checkpoints": sum(len(job.items) for job in own),
            "size_bytes": sum(job.size for job in own),
            "last_saved_at": max((_last(job) for job in own), default=""),
        }
        for name, own in sorted(by_name.items())
    ]
    if output_format == "json":
        as_json({"total_projects": len(rows), "projects": rows})
    elif output_format == "csv":
        titles = ("Project", "Jobs", "Checkpoints", "Size (bytes)", "Last Saved At")
        as_csv(titles, [list(row.values()) for row in rows])
    else:
        columns = (
            Column("Project", lambda row: row["project"]),
            Column("Jobs", lambda row: str(row["jobs"]), right=True),
            Column("Checkpoints", lambda row: str(row["checkpoints"]), right=True),
            Column("Size", lambda row: human_size(row["size_bytes"]), right=True),
            Column("Last Saved At", lambda row: short_time(row["last_saved_at"]), rank=1),
        )
        table("Projects", columns, rows)


@projects.command("show")
@click.argument("project")
@store_option
@format_option
def show_project(project: str, store: str | None, output_format: str) -> None:
    """Show one project: its jobs, the one that began last first."""
    from bt_lightning.errors import CheckpointNotFoundError

    found = _survey(_opened(store), project)
    if not found:
        msg = f"nothing is committed of the project {project}"
        raise CheckpointNotFoundError(msg)
    _print_jobs(f"Jobs of the project {project}", found, output_format)


@projects.command("delete")
@click.argument("project")
@store_option
@dry_run_option
@yes_option
@format_option
def delete_project(
    project: str, store: str | None, dry_run: bool, yes: bool, output_format: str
) -> None:
    """Delete a project, its jobs and their checkpoints, but for those that are protected.

    There is no way back. If one of its jobs is running, that one is refused, after the others.
    """
    from bt_lightning.errors import CheckpointNotFoundError, LeaseHeldError
    from bt_lightning.manage.delete import Deletion, delete_job, jobs_of

    opened = _opened(store)
    names = jobs_of(opened, project)
    if not names:
        msg = f"{opened.name} has nothing of the project {project}"
        raise CheckpointNotFoundError(msg)
    found = _survey(opened, project)
    if dry_run:
        _dry(found, output_format)
        return
    size = sum(job.size for job in found)
    what = f"the project {project} with {len(names)} jobs"
    ask(what, project, size, _names(found), yes=yes)
    total, running = Deletion(), None
    for name in names:
        try:
            done = delete_job(opened, project, name)
        except LeaseHeldError as error:
            running = error
            continue
        total.deleted += done.deleted
        total.kept += done.kept
    report_of(total, output_format)
    if running is not None:
        raise running


def _opened(store: str | None) -> Store:
    from bt_lightning.store.tree import open_bt_store

    return open_bt_store(store, None)


def _own_project() -> str | None:
    from bt_lightning.settings import Settings

    return Settings.from_environ(os.environ).project


def _survey(store: Store, project: str | None, job: str | None = None) -> list[StoredJob]:
    from bt_lightning.manage.locate import survey

    return survey(store, project, job)


def _names(found: list[StoredJob]) -> list[str]:
    return [f"{job.job}/{item.name}" for job in found for item in job.items if not item.protected]


def _dry(found: list[StoredJob], output_format: str) -> None:
    kept = [f"{job.job}/{item.name}" for job in found for item in job.items if item.protected]
    report(_names(found), [], kept, output_format, dry_run=True)


def _last(job: StoredJob) -> str:
    return max((item.manifest.created_at for item in job.items), default="")


def _record(job: StoredJob) -> dict[str, Any]:
    record = job.record
    return {
        "project": job.project,
        "job_id": job.job,
        "checkpoints": len(job.items),
        "damaged": len(job.refused),
        "protected": sum(item.protected for item in job.items),
        "step": max((item.manifest.step for item in job.items), default=None),
        "size_bytes": job.size,
        "created_at": job.began or None,
        "last_saved_at": _last(job) or None,
        "status": record.status if record is not None else None,
        "checkpoint_sync_status": record.checkpoint_sync_status if record is not None else None,
        "attempts": len(record.attempts) if record is not None else None,
        "updated_at": record.updated_at if record is not None else None,
    }


def _print_jobs(title: str, found: list[StoredJob], output_format: str) -> None:
    from bt_lightning.cli.output import Column, as_csv, as_json, table
    from bt_lightning.cli.text import human_size, short_time

    rows = [_record(job) for job in found]
    if output_format == "json":
        as_json({"total_jobs": len(rows), "jobs": rows})
    elif output_format == "csv":
        names = "Project,Job ID,Checkpoints,Damaged,Protected,Step,Size (bytes),Created At"
        titles = (*names.split(","), "Last Saved At", "Status", "Sync", "Attempts", "Updated At")
        as_csv(titles, [["" if v is None else v for v in row.values()] for row in rows])
    elif not rows:
        click.echo("No jobs found.")
    else:
        columns = (
            Column("Project", lambda row: row["project"]),
            Column("Job ID", lambda row: row["job_id"]),
            Column("Status", _text("status"), hide_empty=True),
            Column("Checkpoints", lambda row: str(row["checkpoints"]), right=True, rank=2),
            Column("Step", lambda row: str(row["step"] or 0), right=True),
            Column("Size", lambda row: human_size(row["size_bytes"]), right=True),
            Column("Began", lambda row: short_time(row["created_at"] or ""), rank=3),
            Column("Last Saved At", lambda row: short_time(row["last_saved_at"] or ""), rank=1),
            Column(
                "Sync", lambda row: row["checkpoint_sync_status"] or "", rank=6, hide_empty=True
            ),
            Column("Protected", _count("protected"), right=True, rank=4, hide_empty=True),
            Column("Damaged", _count("damaged"), right=True, rank=5, hide_empty=True),
        )
        table(title, columns, rows)


def _count(name: str) -> Any:
    return lambda row: str(row[name]) if row[name] else ""


def _text(name: str) -> Any:
    return lambda row: row[name] or ""
