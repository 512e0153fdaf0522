"""The commands for jobs and projects of a store: list, show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import format_option, notice, store_option

if TYPE_CHECKING:
    from bt_lightning.job_record import JobRecord
    from bt_lightning.manage.find_target import StoredJob
    from bt_lightning.manage.job_objects import Files
    from bt_lightning.manage.run_history import RunHistory
    from bt_lightning.store.interface import Store

_ATTEMPTS = 5
job_project_option = click.option(
    "--project", help="Project of the jobs.  [env: BT_TRAINING_PROJECT_NAME]"
)


@click.group(cls=Group)
def jobs() -> None:
    """List, show, stop, start again and delete the jobs of a store."""


@click.group(cls=Group)
def projects() -> None:
    """List, show and delete the projects of a store."""


@jobs.command("list")
@store_option
@job_project_option
@format_option
def list_jobs_command(store: str | None, project: str | None, output_format: str) -> None:
    """List jobs with their newest step and size, the latest first."""
    _print_jobs("Jobs", jobs_of_store(open_named_store(store), project), output_format)


@jobs.command("show")
@click.argument("job_id")
@store_option
@job_project_option
@format_option
def show_job(job_id: str, store: str | None, project: str | None, output_format: str) -> None:
    """Show one job: its runner's record, and its checkpoints, the oldest first."""
    from dataclasses import asdict

    from bt_lightning.cli.render.checkpoint_table import records, render, sort_items
    from bt_lightning.cli.render.event_text import history_lines
    from bt_lightning.cli.render.table_csv_json import as_json
    from bt_lightning.manage.find_target import Target, open_job, project_of

    opened = open_named_store(store)
    project = project_of(opened, project or environment_project(), job_id)
    found = jobs_of_store(opened, project, job_id)
    record = found[0].record if found else None
    if record is not None and output_format == "cli-table":
        for line in [*_record_lines(record), *history_lines(_history(opened, project, job_id))]:
            click.echo(line)
        if not found[0].items:
            return
    target = Target(store=store, project=project, job=job_id)
    source = open_job(target, notice)
    items = sort_items(source, source.items(), "created", "asc")
    if output_format == "json":
        rows = records([(source, item) for item in items])
        job = None if record is None else asdict(record)
        listed = {"total_checkpoints": len(rows), "checkpoints": rows}
        as_json({"job_id": source.job, "job": job, **listed})
    else:
        render([(source, items)], output_format, source.job)


def _history(store: Store, project: str, job: str) -> RunHistory:
    """What the logs of a job in a store tell."""
    from bt_lightning.log_kinds import EVENTS, METRICS
    from bt_lightning.manage.job_logs import stored_log
    from bt_lightning.manage.run_history import run_history

    read = (stored_log(store, project, job, kind, 0).new() for kind in (EVENTS, METRICS))
    return run_history(*([one.event for one in logged] for logged in read))


def _record_lines(record: JobRecord) -> list[str]:
    """A runner's record of its job, as lines for people."""
    from bt_lightning.cli.render.text import printable, short_time

    ended = f", ended {short_time(record.ended_at)}" if record.ended_at else ""
    silent = "" if record.over else f", last heard of {short_time(record.updated_at)}"
    sync = f", sync {record.checkpoint_sync_status}" if record.checkpoint_sync_status else ""
    lines = [
        f"{record.status}{sync} on {record.host}",
        f"began {short_time(record.created_at)}{ended}{silent}",
    ]
    for attempt in record.attempts[-_ATTEMPTS:]:
        code = f"signal {attempt.signal}" if attempt.signal else f"exit code {attempt.exit_code}"
        end = f"{attempt.outcome} with {code}" if attempt.ended_at else "is running"
        lines.append(f"attempt {attempt.number}, {short_time(attempt.started_at)}: {end}")
    if record.waiting:
        lines.append(f"not in the store: {', '.join(record.waiting)}")
    return [printable(line) for line in lines]


@projects.command("list")
@store_option
@format_option
def list_projects_command(store: str | None, output_format: str) -> None:
    """List projects with their jobs and sizes."""
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.cli.render.text import short_time
    from bt_lightning.human_units import human_size

    by_name: dict[str, list[StoredJob]] = {}
    for job in jobs_of_store(open_named_store(store), None):
        by_name.setdefault(job.project, []).append(job)
    rows = [
        {
            "project": name,
            "jobs": len(own),
            "checkpoints": sum(len(job.items) for job in own),
            "size_bytes": sum(job.size for job in own),
            "last_saved_at": max((_last(job) for job in own), default=""),
            "files": _files(own).as_dict(),
        }
        for name, own in sorted(by_name.items())
    ]
    if output_format == "json":
        as_json({"total_projects": len(rows), "projects": rows})
    elif output_format == "csv":
        titles = ("Project", "Jobs", "Checkpoints", "Size (bytes)", "Last Saved At", *_FILE_TITLES)
        as_csv(titles, [_flat(row) for row in rows])
    else:
        columns = (
            Column("Project", lambda row: row["project"]),
            Column("Jobs", lambda row: str(row["jobs"]), right=True),
            Column("Checkpoints", lambda row: str(row["checkpoints"]), right=True),
            Column("Size", lambda row: human_size(row["size_bytes"]), right=True),
            Column("Other Files", _other_files, right=True, hide_empty=True),
            Column("Last Saved At", lambda row: short_time(row["last_saved_at"]), rank=1),
        )
        table("Projects", columns, rows)


@projects.command("show")
@click.argument("project")
@store_option
@format_option
def show_project(project: str, store: str | None, output_format: str) -> None:
    """Show one project: its jobs, the latest first."""
    from bt_lightning.errors import CheckpointNotFoundError

    found = jobs_of_store(open_named_store(store), project)
    if not found:
        msg = f"nothing is committed of the project {project}"
        raise CheckpointNotFoundError(msg)
    _print_jobs(f"Jobs of the project {project}", found, output_format)


def open_named_store(store: str | None) -> Store:
    """The store that `--store` or the environment names."""
    from bt_lightning.store.catalog.bt_url_tree import open_bt_store

    return open_bt_store(store, None)


def environment_project() -> str | None:
    """The project that the environment names."""
    from bt_lightning.settings import Settings

    return Settings.from_environ(os.environ).project


def jobs_of_store(store: Store, project: str | None, job: str | None = None) -> list[StoredJob]:
    """Jobs of a store, of a project, or of that id; imports `find_jobs` when called."""
    from bt_lightning.manage.find_target import find_jobs

    return find_jobs(store, project, job)


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
        "created_at": None if record is None else record.created_at,
        "oldest_checkpoint_at": job.oldest or None,
        "last_saved_at": _last(job) or None,
        "status": record.status if record is not None else None,
        "checkpoint_sync_status": record.checkpoint_sync_status if record is not None else None,
        "attempts": len(record.attempts) if record is not None else None,
        "updated_at": record.updated_at if record is not None else None,
        "files": _files([job]).as_dict(),
    }


def _print_jobs(title: str, found: list[StoredJob], output_format: str) -> None:
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.human_units import human_size

    rows = [_record(job) for job in found]
    if output_format == "json":
        as_json({"total_jobs": len(rows), "jobs": rows})
    elif output_format == "csv":
        names = (
            "Project,Job ID,Checkpoints,Damaged,Protected,Step,Size (bytes),Created At,"
            "Oldest Checkpoint At,Last Saved At,Status,Sync,Attempts,Updated At"
        )
        as_csv((*names.split(","), *_FILE_TITLES), [_flat(row) for row in rows])
    elif not rows:
        click.echo("No jobs found.")
    else:
        columns = (
            Column("Project", lambda row: row["project"]),
            Column("Job ID", lambda row: row["job_id"]),
            Column("Status", _text("status"), hide_empty=True),
            Column("Last Heard Of", _silent_since, rank=2, hide_empty=True),
            Column("Checkpoints", lambda row: str(row["checkpoints"]), right=True, rank=2),
            Column("Step", lambda row: "" if row["step"] is None else str(row["step"]), right=True),
            Column("Size", lambda row: human_size(row["size_bytes"]), right=True),
            Column("Other Files", _other_files, right=True, hide_empty=True),
            Column("Began", _time("created_at"), rank=3, hide_empty=True),
            Column("Oldest Checkpoint", _time("oldest_checkpoint_at"), rank=4, hide_empty=True),
            Column("Last Saved At", _time("last_saved_at"), rank=1),
            Column("Sync", _text("checkpoint_sync_status"), rank=6, hide_empty=True),
            Column("Protected", _count("protected"), right=True, rank=4, hide_empty=True),
            Column("Damaged", _count("damaged"), right=True, rank=5, hide_empty=True),
        )
        table(title, columns, rows)


def _silent_since(row: dict[str, Any]) -> str:
    """When a job that should be running was last heard of, if its runner says nothing any more."""
    from datetime import datetime, timezone

    from bt_lightning.cli.render.text import short_time
    from bt_lightning.manage.stop_job import SILENT_S, silent_s

    if row["status"] not in {"CREATED", "RUNNING"}:
        return ""
    silent = silent_s(row["updated_at"], datetime.now(timezone.utc)) > SILENT_S
    return short_time(row["updated_at"]) if silent else ""


def _count(name: str) -> Any:
    return lambda row: str(row[name]) if row[name] else ""


def _text(name: str) -> Any:
    return lambda row: row[name] or ""


def _time(name: str) -> Any:
    from bt_lightning.cli.render.text import short_time

    return lambda row: short_time(row[name] or "")


def _files(found: list[StoredJob]) -> Files:
    """Summary of files that belong to no checkpoint; with the job in the name if several."""
    from bt_lightning.manage.job_objects import Files

    several = len(found) > 1
    return Files.of(
        (f"{job.job}/{path}" if several else path, size)
        for job in found
        for path, size in job.objects.files.items()
    )


def _other_files(row: dict[str, Any]) -> str:
    from bt_lightning.human_units import human_size

    files = row["files"]
    return f"{files['number']:,}, {human_size(files['size_bytes'])}" if files["number"] else ""


_FILE_TITLES = ("Other Files", "Other Files (bytes)", "Names of Other Files")


def _flat(row: dict[str, Any]) -> list[object]:
    """A row for CSV."""
    cells = ["" if value is None else value for name, value in row.items() if name != "files"]
    files = row["files"]
    return [*cells, files["number"], files["size_bytes"], " ".join(files["names"])]
