"""The commands about what `delete --trash` put aside: list, restore, empty."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.commands.protect_delete import ask, render_deletion, yes_option
from bt_lightning.cli.target_options import format_option, job_of, target_options

if TYPE_CHECKING:
    from bt_lightning.manage.find_target import Target


@click.group()
def trash() -> None:
    """List, bring back or empty what `delete --trash` put aside.

    What has been there for its days goes with the next `trash list` of its job.
    """


@trash.command("list")
@target_options
@format_option
def list_trash(target: Target, output_format: str) -> None:
    """List what was put aside, and until when."""
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.manage.trash import empty, trashed

    shelf = job_of(target)
    empty(shelf, before=time.time())
    rows = [(one.name, _utc(one.expires)) for one in trashed(shelf)]
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
        table(f"Trash of job: {shelf.job}", columns, rows)


@trash.command("restore")
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
def restore_trash(checkpoints: tuple[str, ...], target: Target) -> None:
    """Bring checkpoints back to where they were."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.manage.trash import restore

    shelf = job_of(target)
    for name in checkpoints:
        click.echo(f"{printable(restore(shelf, name).name)}: is back")


@trash.command("empty")
@target_options
@yes_option
def empty_trash(target: Target, yes: bool) -> None:
    """Delete for good what was put aside."""
    from bt_lightning.manage.trash import empty, trashed

    shelf = job_of(target)
    found = trashed(shelf)
    if found:
        size = sum(one.size for one in found)
        names = [one.name for one in found]
        ask(f"the trash of {shelf.name}", "yes", size, names, yes=yes)
    render_deletion([one.name for one in empty(shelf)], [], [], "cli-table")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
