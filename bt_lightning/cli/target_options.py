"""Options that name checkpoints (--dir, --store, --project, --job-id), shared by the commands."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.find_target import Target

_PLAIN = frozenset({"text", "cli-table"})
_LINES, _NONE = "jsonl", "none"
CHOSEN_FORMAT = "bt_lightning.output_format"
"""Key, in the context's `meta`, of the format that was asked for by any name."""


class _Format(click.Choice[str]):
    """A format by any of its names; commands know only the first ones.

    `text` and `cli-table` are one. `jsonl` and `none` are JSON, which is printed as lines or not.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known
        super().__init__(tuple(dict.fromkeys((*known, "text", "jsonl", "none"))))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        chosen = "text" if value == "cli-table" and "cli-table" not in self._known else value
        found = str(super().convert(chosen, param, ctx))
        if ctx is not None:
            ctx.meta[CHOSEN_FORMAT] = found
        if found in {_LINES, _NONE}:
            return "json"
        return next(one for one in self._known if one in _PLAIN) if found in _PLAIN else found


def output_option(*known: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option -o of a command that knows these formats, the default first."""
    return click.option(
        "-o",
        "--output-format",
        type=_Format(known),
        default=known[0],
        show_default=True,
        help="Format of the output.",
    )


directory_option = click.option(
    "--dir",
    "directory",
    envvar="BT_CHECKPOINT_DIR",
    show_envvar=True,
    help="Checkpoint directory; without it and a store, one in ./bt_checkpoints.",
)
store_option = click.option(
    "--store", envvar="BT_STORE_URL", show_envvar=True, help="Store URL, as s3://bucket/prefix."
)
project_option = click.option(
    "--project", "--project-id", help="Project in the store.  [env: BT_TRAINING_PROJECT_NAME]"
)
job_option = click.option(
    "--job-id",
    help="Job in the store; by default the one that began last.  [env: BT_TRAINING_JOB_ID]",
)
format_option = output_option("cli-table", "csv", "json")
text_or_json_option = output_option("text", "json")
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

    return open_job(target, notice)


def notice(text: str) -> None:
    """Print a line for people to stderr."""
    from bt_lightning.cli.render.text import printable

    click.secho(printable(text), fg="yellow", err=True)


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
