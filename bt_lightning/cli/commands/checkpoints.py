"""The commands that read checkpoints: list, explore, verify, show, files, diff, urls."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import (
    CHOSEN_FORMAT,
    checkpoints_of,
    format_option,
    one_checkpoint,
    output_option,
    say_refused,
    target_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manage.find_target import Target

_DAMAGED = 12
_DEFAULT = click.core.ParameterSource.DEFAULT


@click.group(cls=Group)
def checkpoints() -> None:
    """List, show, verify, download, protect and delete checkpoints, on a disk or in a store."""


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
@click.option("--all-jobs", is_flag=True, help="List every job of the store, or of --project.")
@click.option("--non-interactive", is_flag=True, help="Print the list, on a terminal too.")
@format_option
@click.pass_context
def list_checkpoints(
    ctx: click.Context,
    /,
    url: str | None,
    target: Target,
    checkpoint_name: str | None,
    sort: str,
    order: str,
    all_jobs: bool,
    non_interactive: bool,
    output_format: str,
) -> None:
    """List committed checkpoints, and what other programs wrote into a directory.

    URL is bt://project[@job][/checkpoint] of the store, or a directory. With a store and no job,
    shows the job that --dir publishes to, else the one that began last. With both, checkpoints that
    only the directory has so far are SYNCING; those that no job has committed are NOT COMMITTED. On
    a terminal, opens the explorer if it is installed.
    """
    from bt_lightning.cli.render.checkpoint_table import (
        check_metric,
        check_sort,
        render,
        sort_items,
    )
    from bt_lightning.manage.checkpoint_items import find
    from bt_lightning.manage.find_target import open_every_job, split_bt_url

    if all_jobs and (url or target.job):
        msg = "--all-jobs and one job exclude each other"
        raise click.UsageError(msg)
    check_sort(sort)
    if url:
        target, named = split_bt_url(replace(target, url=url))
        checkpoint_name = checkpoint_name or named
    plain = non_interactive or ctx.meta.get(CHOSEN_FORMAT) == "text"
    if not all_jobs and not plain and output_format == "cli-table" and _on_terminal():
        from bt_lightning.cli.explore.explorer import Explorer

        chosen = any(ctx.get_parameter_source(name) is not _DEFAULT for name in ("sort", "order"))
        Explorer(checkpoints_of(target), checkpoint_name, (sort, order) if chosen else None).run()
        return
    with _no_collection():
        sources = open_every_job(target) if all_jobs else [checkpoints_of(target)]
        found = []
        for source in sources:
            items = [find(source, checkpoint_name)] if checkpoint_name else source.items()
            say_refused(source)
            found.append((source, items))
        check_metric(sort, [item for _, items in found for item in items])
        found = [(source, sort_items(source, items, sort, order)) for source, items in found]
        job_id = None if all_jobs else sources[0].job
        if output_format == "cli-table" and not any(items for _, items in found):
            click.echo(
                f"No checkpoints found for job: {job_id}." if job_id else "No checkpoints found."
            )
            return
        render(found, output_format, job_id)


@checkpoints.command()
@click.argument("checkpoint", required=False)
@target_options
@click.option("--web", is_flag=True, help="Open in a browser of this machine, by a one-time URL.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of --web; 0 takes any free one."
)
def explore(checkpoint: str | None, target: Target, web: bool, port: int) -> None:
    """Explore checkpoints, their files and tensors, compare them, and look after them.

    CHECKPOINT is an id to begin with, or bt://project[@job][/checkpoint]. Press ? for the keys, a
    for what can be done: protect, delete, download, verify, copy, export. What changes anything
    asks first.
    """
    from bt_lightning.manage.find_target import split_bt_url
    from bt_lightning.uri import is_bt

    _need_textual()
    if checkpoint and is_bt(checkpoint):
        target, checkpoint = split_bt_url(replace(target, url=checkpoint))
    if web:
        from bt_lightning.cli.explore.web_server import serve

        serve(target, checkpoint, port)
        return
    from bt_lightning.cli.explore.explorer import Explorer

    Explorer(checkpoints_of(target), checkpoint).run()


@checkpoints.command("verify")
@click.argument("checkpoints", nargs=-1)
@target_options
@click.option("--quick", is_flag=True, help="Manifests and sizes only; reads no data.")
@click.option("--deep", is_flag=True, help="Check the headers of tensor files too.")
@format_option
def verify_command(
    checkpoints: tuple[str, ...], target: Target, quick: bool, deep: bool, output_format: str
) -> None:
    """Read every byte of checkpoints and compare it with their manifests.

    CHECKPOINTS are ids, paths of directories, or bt://project[@job][/checkpoint] of the store.
    Without any, verifies all of --dir, or of the job in the store. Exits with 12 if any is damaged.
    """
    from bt_lightning.cli.render.verification import verify_all
    from bt_lightning.manage.verify import BYTES, DEEP, QUICK

    if quick and deep:
        msg = "--quick and --deep exclude each other"
        raise click.UsageError(msg)
    depth = QUICK if quick else DEEP if deep else BYTES
    if not verify_all(target, checkpoints, depth, output_format):
        sys.exit(_DAMAGED)


@checkpoints.command()
@click.argument("checkpoint", default="latest")
@target_options
@click.option("--tensors", is_flag=True, help="Show every tensor instead of totals by module.")
@format_option
def show(checkpoint: str, target: Target, tensors: bool, output_format: str) -> None:
    """Show one checkpoint: its facts, its files, and its tensors.

    CHECKPOINT is an id, `latest`, the path of a folder or file (what transformers, torch or
    Lightning wrote as well), or bt://project[@job][/checkpoint]. Only the headers of large
    files are read, and no code in a .ckpt or .pt is run.
    """
    from bt_lightning.cli.render.checkpoint_details import render_details as shown

    source, item = one_checkpoint(target, checkpoint)
    shown(source, item, output_format, every_tensor=tensors)


@checkpoints.command()
@click.argument("checkpoint", default="latest")
@target_options
@format_option
def files(checkpoint: str, target: Target, output_format: str) -> None:
    """List the files of one checkpoint."""
    from bt_lightning.cli.render.checkpoint_details import render_files as shown

    _, item = one_checkpoint(target, checkpoint)
    shown(item, output_format)


@checkpoints.command()
@click.argument("before")
@click.argument("after", default="latest")
@target_options
@click.option(
    "--norms", is_flag=True, help="Say how far each changed tensor moved, the largest first."
)
@format_option
def diff(before: str, after: str, target: Target, norms: bool, output_format: str) -> None:
    """Compare the tensors of two checkpoints: added, removed, reshaped, changed.

    Exits with 1 if they differ. Digests show most equal tensors; only the others are read.
    """
    from bt_lightning.cli.render.checkpoint_details import render_difference as shown

    pair = (one_checkpoint(target, before), one_checkpoint(target, after))
    if shown(*pair, output_format, with_norms=norms):
        sys.exit(1)


@checkpoints.command()
@target_options
@click.option("--checkpoint-name", metavar="NAME", help="Only this one; `latest` is the newest.")
@click.option(
    "--expires",
    type=click.IntRange(1, 7 * 24 * 3600),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long the URLs work, at most a week.",
)
@click.option("--output", type=click.Path(dir_okay=False), help="File to write; else stdout.")
@output_option("json", "text")
def urls(
    target: Target,
    checkpoint_name: str | None,
    expires: int,
    output: str | None,
    output_format: str,
) -> None:
    """Print a URL for each file, signed where the store signs, as JSON.

    The keys are those of `truss train get_checkpoint_urls`. Anybody with such a URL can read
    the file until it expires: only its owner can read a file written with --output.
    """
    from bt_lightning.cli.render.presigned_urls import write_urls

    if output is not None and output_format != "json":
        msg = "a file gets JSON: leave --output-format out"
        raise click.UsageError(msg)
    write_urls(checkpoints_of(target), checkpoint_name, expires, output, output_format)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: all that a list makes lives until its end, and is looked at in vain.

    For 10,000 checkpoints that takes a third of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _on_terminal() -> bool:
    """Whether the explorer can be used: on a terminal, and if it is installed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        return False
    return importlib.util.find_spec("textual") is not None


def _need_textual() -> None:
    if importlib.util.find_spec("textual") is None:
        msg = "the explorer needs Textual: pip install 'bt_lightning[explore]'"
        raise click.UsageError(msg)
