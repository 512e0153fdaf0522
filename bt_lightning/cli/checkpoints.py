"""The commands that look at checkpoints, and their options."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.options import (
    directory_option,
    format_option,
    say_refused,
    shelf_of,
    store_option,
    target_options,
)

if TYPE_CHECKING:
    from bt_lightning.manage.locate import Target

_DAMAGED = 12


@click.group()
def checkpoints() -> None:
    """List, look into, verify, fetch, protect and delete checkpoints, on a disk or in a store."""


@checkpoints.command("list")
@click.argument("url", required=False)
@target_options
@click.option("--checkpoint-name", metavar="NAME", help="Only this one; `latest` is the newest.")
@click.option(
    "--sort",
    default="created",
    show_default=True,
    metavar="KEY",
    help="checkpoint-id, size, created, type, step, or metric:<name>.",
)
@click.option("--order", type=click.Choice(["asc", "desc"]), default="asc", show_default=True)
@click.option("--all-jobs", is_flag=True, help="Of every job of the store, or of --project.")
@format_option
def list_checkpoints(
    url: str | None,
    target: Target,
    checkpoint_name: str | None,
    sort: str,
    order: str,
    all_jobs: bool,
    output_format: str,
) -> None:
    """List committed checkpoints.

    URL is bt://project[@job][/checkpoint] of the store, or a directory. With a store and no job,
    shows the job that --dir publishes to, else the one that began last. With both, what only the
    directory has yet is SYNCING.
    """
    from bt_lightning.cli.listing import render, sort_items
    from bt_lightning.manage.locate import every_shelf, split_url
    from bt_lightning.manage.shelf import find

    if all_jobs and (url or target.job):
        msg = "--all-jobs and one job exclude each other"
        raise click.UsageError(msg)
    if url:
        target, named = split_url(replace(target, url=url))
        checkpoint_name = checkpoint_name or named
    shelves = every_shelf(target) if all_jobs else [shelf_of(target)]
    found = []
    for shelf in shelves:
        items = [find(shelf, checkpoint_name)] if checkpoint_name else shelf.items()
        say_refused(shelf)
        found.append((shelf, sort_items(items, sort, order)))
    job_id = None if all_jobs else shelves[0].job
    if output_format == "cli-table" and not any(items for _, items in found):
        click.echo(
            f"No checkpoints found for job: {job_id}." if job_id else "No checkpoints found."
        )
        return
    render(found, output_format, job_id)


@checkpoints.command()
@click.argument("paths", nargs=-1)
@directory_option
@store_option
def verify(paths: tuple[str, ...], directory: str | None, store: str | None) -> None:
    """Read every byte of checkpoints and compare it with their manifests.

    PATHS are directories, or bt://project[@job][/checkpoint] of the store. Without any, verifies
    all that is committed under --dir. Exits with 12 if any is damaged.
    """
    from bt_lightning.cli.verifying import verify_all
    from bt_lightning.manage.locate import Target, directory_named

    if not verify_all(paths or directory_named(Target(directory=directory)), store):
        sys.exit(_DAMAGED)
