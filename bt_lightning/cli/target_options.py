"""Options that several commands have, and what they come to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.find_target import Target
    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints

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
    "--job-id", help="Job in the store; else the one that began last.  [env: BT_TRAINING_JOB_ID]"
)
format_option = click.option(
    "-o",
    "--output-format",
    type=click.Choice(["cli-table", "csv", "json"]),
    default="cli-table",
    show_default=True,
    help="How to print it.",
)
_TARGET = (directory_option, store_option, project_option, job_option)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --dir, --store, --project and --job-id, and pass them on as one `Target`."""

    @functools.wraps(command)
    def called(
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
        called = option(called)
    return called


def job_of(target: Target) -> JobCheckpoints:
    """The shelf that the options name; a choice among several jobs is said on stderr."""
    from bt_lightning.manage.find_target import open_job

    return open_job(target, lambda text: click.secho(text, fg="yellow", err=True))


def one_checkpoint(target: Target, name: str) -> tuple[JobCheckpoints, CheckpointItem]:
    """The checkpoint `name` of what the options name; of its own job, if it is a `bt://` URL."""
    return some_checkpoints(target, [name])[0]


def some_checkpoints(
    target: Target, names: Sequence[str]
) -> list[tuple[JobCheckpoints, CheckpointItem]]:
    """The checkpoints of these names, found before anything is done with the first of them."""
    from bt_lightning.manage.find_target import Target, split_bt_url
    from bt_lightning.manage.job_checkpoints import find
    from bt_lightning.uri import is_bt

    own: JobCheckpoints | None = None
    found = []
    for name in names:
        if is_bt(name):
            at, named = split_bt_url(Target(url=name, store=target.store))
            shelf = job_of(at)
            found.append((shelf, find(shelf, named or "latest")))
        else:
            own = own or job_of(target)
            found.append((own, find(own, name)))
    return found


def say_refused(shelf: JobCheckpoints) -> None:
    """Name on stderr what looks like a checkpoint and cannot be used."""
    from bt_lightning.cli.render.text import printable

    for reason in shelf.refused:
        click.secho(f"left out: {printable(reason)}", fg="yellow", err=True)
