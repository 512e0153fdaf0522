"""The commands that delete a job or a project; they list what they delete and ask first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bt_lightning.cli.commands.jobs import (
    environment_project,
    job_project_option,
    jobs_of_store,
    open_named_store,
)
from bt_lightning.cli.commands.protect_delete import (
    ask,
    dry_run_option,
    render_deletion,
    yes_option,
)
from bt_lightning.cli.target_options import format_option, store_option

if TYPE_CHECKING:
    from bt_lightning.manage.delete import Deletion
    from bt_lightning.manage.find_target import StoredJob
    from bt_lightning.manage.job_objects import Files


@click.command("delete")
@click.argument("job_id")
@store_option
@job_project_option
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
    """Delete a job: its checkpoints, except protected ones, and its other files.

    This cannot be undone. A running job is refused: stop it first. The next call finishes a
    deletion that was interrupted. Files that arrive meanwhile stay.
    """
    from bt_lightning.manage.delete import delete_job
    from bt_lightning.manage.find_target import project_of
    from bt_lightning.manage.job_objects import JobObjects

    opened = open_named_store(store)
    project = project_of(opened, project or environment_project(), job_id)
    found = jobs_of_store(opened, project, job_id)
    if dry_run:
        _dry_run(found, output_format)
        return
    _ask(f"the job {job_id} of {project}", job_id, found, yes=yes)
    counted = found[0].objects if found else JobObjects()
    _report(delete_job(opened, project, job_id, counted), output_format)


@click.command("delete")
@click.argument("project")
@store_option
@dry_run_option
@yes_option
@format_option
def delete_project(
    project: str, store: str | None, dry_run: bool, yes: bool, output_format: str
) -> None:
    """Delete a project: its jobs, their checkpoints, except protected ones, and all other files.

    This cannot be undone. A running job is refused after the others were deleted. Files that
    arrive meanwhile stay.
    """
    from bt_lightning.errors import CheckpointNotFoundError, LeaseHeldError
    from bt_lightning.manage.delete import Deletion, delete_job, jobs_of
    from bt_lightning.manage.job_objects import JobObjects

    opened = open_named_store(store)
    names = jobs_of(opened, project)
    if not names:
        msg = f"{opened.name} has nothing of the project {project}"
        raise CheckpointNotFoundError(msg)
    found = jobs_of_store(opened, project)
    if dry_run:
        _dry_run(found, output_format)
        return
    _ask(f"the project {project} with {len(names)} jobs", project, found, yes=yes)
    counted = {job.job: job.objects for job in found}
    total, running = Deletion(), None
    for name in names:
        try:
            done = delete_job(opened, project, name, counted.get(name, JobObjects()))
        except LeaseHeldError as error:
            running = error
            continue
        total.deleted += done.deleted
        total.kept += done.kept
        total.files += done.files
        total.left += done.left
    _report(total, output_format)
    if running is not None:
        raise running


def _ask(what: str, word: str, found: list[StoredJob], *, yes: bool) -> None:
    size = sum(job.objects.size for job in found)
    names = [f"{job.job}/{path}" for job in found for path in job.objects.going]
    ask(what, word, size, names, yes=yes, files=_files(found))


def _dry_run(found: list[StoredJob], output_format: str) -> None:
    going = [f"{job.job}/{path}" for job in found for path in job.objects.going]
    kept = [f"{job.job}/{path}" for job in found for path in sorted(job.objects.protected)]
    render_deletion(going, [], kept, output_format, dry_run=True, files=_files(found))


def _report(done: Deletion, output_format: str) -> None:
    from bt_lightning.manage.job_objects import Files

    files, left = Files.of(done.files), done.left
    render_deletion(done.deleted, done.asked, done.kept, output_format, files=files, left=left)


def _files(found: list[StoredJob]) -> Files:
    from bt_lightning.manage.job_objects import Files

    return Files.of(
        (f"{job.job}/{path}", size) for job in found for path, size in job.objects.files.items()
    )
