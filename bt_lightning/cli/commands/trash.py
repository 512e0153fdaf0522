"""The commands for the trash that `delete --trash` fills: list, restore, empty."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.commands.protect_delete import ask, render_deletion, yes_option
from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import checkpoints_of, format_option, target_options

if TYPE_CHECKING:
    from bt_lightning.manage.find_target import Target


@click.group(cls=Group)
def trash() -> None:
    """List, restore or empty the trash that `delete --trash` fills.

    Expired checkpoints are deleted by the next `trash list` of their job.
    """


@trash.command("list")
@target_options
@format_option
def list_trash(target: Target, output_format: str) -> None:
    """List the checkpoints in the trash, and when they expire."""
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.manage.trash import empty, trashed

    source = checkpoints_of(target)
    empty(source, before=time.time())
    rows = [(entry.name, _utc(entry.expires)) for entry in trashed(source)]
    if output_format == "json":
        as_json({"trash": [{"checkpoint_id": name, "expires_at": day} for name, day in rows]})
    elif output_format == "csv":
        as_csv(("Checkpoint Name", "Expires At"), rows)
    elif not rows:
        click.echo("The trash is empty.")
    else:
        columns = (
            Column("Checkpoint Name", lambda row: row[0]),
            Column("Expires At", lambda row: row[1]),
        )
        table(f"Trash of job: {source.job}", columns, rows)


@trash.command("restore")
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
def restore_trash(checkpoints: tuple[str, ...], target: Target) -> None:
    """Move checkpoints back to where they were."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.manage.trash import restore

    source = checkpoints_of(target)
    for name in checkpoints:
        click.echo(f"{printable(restore(source, name).name)}: restored")


@trash.command("empty")
@target_options
@yes_option
def empty_trash(target: Target, yes: bool) -> None:
    """Delete the checkpoints in the trash for good."""
    from bt_lightning.manage.trash import empty, trashed

    source = checkpoints_of(target)
    found = trashed(source)
    if found:
        size = sum(entry.size for entry in found)
        names = [entry.name for entry in found]
        ask(f"the trash of {source.name}", "yes", size, names, yes=yes)
    render_deletion([entry.name for entry in empty(source)], [], [], "cli-table")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
