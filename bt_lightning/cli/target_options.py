"""Options that name checkpoints (--dir, --store, --project, --job-id), shared by the commands."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.find_target import Target

directory_option = click.option(
    "--dir",
    "directory",
    envvar="BT_CHECKPOINT_DIR",
    show_envvar=True,
    help="Checkpoint directory.",
)
store_option = click.option(
    "--store", envvar="BT_STORE_URL", show_envvar=True, help="Store URL, as s3://bucket/prefix."
)
project_option = click.option(
    "--project", help="Project in the store.  [env: BT_TRAINING_PROJECT_NAME]"
)
job_option = click.option(
    "--job-id",
    help="Job in the store; by default the one that began last.  [env: BT_TRAINING_JOB_ID]",
)
format_option = click.option(
    "-o",
    "--output-format",
    type=click.Choice(["cli-table", "csv", "json"]),
    default="cli-table",
    show_default=True,
    help="Format of the output.",
)
_TARGET = (directory_option, store_option, project_option, job_option)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --dir, --store, --project and --job-id, and pass them on as one `Target`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        directory: str | None,
        store: str | None,
        project: str | None,
        job_id: str | None,
        **rest: Any,
    ) -> Any:
        from bt_lightning.manage.find_target import Target

        target = Target(directory=directory, store=store, project=project, job=job_id)
        return command(*args, target=target, **rest)

    for option in reversed(_TARGET):
        wrapped = option(wrapped)
    return wrapped


def checkpoints_of(target: Target) -> JobCheckpoints:
    """Open the job that the options name; a choice among several is noted on stderr."""
    from bt_lightning.manage.find_target import open_job

    return open_job(target, lambda text: click.secho(text, fg="yellow", err=True))


def one_checkpoint(target: Target, name: str) -> tuple[JobCheckpoints, CheckpointItem]:
    """The checkpoint `name` of the job that the options name, or that a `bt://` URL names."""
    return some_checkpoints(target, [name])[0]


def some_checkpoints(
    target: Target, names: Sequence[str]
) -> list[tuple[JobCheckpoints, CheckpointItem]]:
    """The checkpoints of these names; all are found before the first is used."""
    from bt_lightning.manage.checkpoint_at_path import source_at_path
    from bt_lightning.manage.checkpoint_items import find
    from bt_lightning.manage.find_target import Target, split_bt_url
    from bt_lightning.uri import is_bt

    job: JobCheckpoints | None = None
    found = []
    for name in names:
        if (at_path := source_at_path(target, name)) is not None:
            found.append(at_path)
        elif is_bt(name):
            job_target, named = split_bt_url(Target(url=name, store=target.store))
            source = checkpoints_of(job_target)
            found.append((source, find(source, named or "latest")))
        else:
            job = job or checkpoints_of(target)
            found.append((job, find(job, name)))
    return found


def say_refused(source: JobCheckpoints) -> None:
    """List on stderr the folders that look like checkpoints and cannot be used."""
    from bt_lightning.cli.render.text import printable

    for reason in source.refused:
        click.secho(f"left out: {printable(reason)}", fg="yellow", err=True)
