"""`bt-lightning`: the commands, their options and exit codes. What they do lives below."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from bt_lightning import __version__
from bt_lightning.errors import CheckpointError, CheckpointNotFoundError

_FAILED = 12


class _Group(click.Group):
    """Turns what this package raises on purpose into one line on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CheckpointError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bt-lightning")
def main() -> None:
    """Look after the checkpoints of PyTorch Lightning runs.

    Exit codes: 0 done, 2 wrong usage or setting, 10 not found, 12 damaged, 13 of a newer format,
    17 directory unusable, 21 store unreachable, 22 store refused.
    """


@main.group()
def checkpoints() -> None:
    """List and verify checkpoints, on a disk or in a store."""


_DIR = click.option(
    "--dir",
    "directory",
    envvar="BT_CHECKPOINT_DIR",
    show_envvar=True,
    help="Checkpoint directory.",
)
_STORE = click.option(
    "--store", envvar="BT_STORE_URL", show_envvar=True, help="Store URL; wins over --dir."
)
_PROJECT = click.option("--project", help="Project in the store.  [env: BT_TRAINING_PROJECT_NAME]")
_JOB = click.option("--job-id", help="Job in the store.  [env: BT_TRAINING_JOB_ID]")


@checkpoints.command("list")
@click.argument("url", required=False)
@_DIR
@_STORE
@_PROJECT
@_JOB
@click.option(
    "-o",
    "--output-format",
    type=click.Choice(["cli-table", "csv", "json"]),
    default="cli-table",
    show_default=True,
)
def list_checkpoints(  # noqa: PLR0913, PLR0917 - one argument an option
    url: str | None,
    directory: str | None,
    store: str | None,
    project: str | None,
    job_id: str | None,
    output_format: str,
) -> None:
    """List committed checkpoints, newest step first.

    With URL, bt://project[@job], those of that job in the store; without @job, of the most recent.
    """
    from bt_lightning.cli.listing import render, rows_of_directory, rows_of_store, rows_of_url

    if url:
        rows = rows_of_url(url, store)
    elif store:
        rows = rows_of_store(store, _prefix(project, job_id, directory))
    else:
        rows = rows_of_directory(_directory(directory))
    render(rows, output_format)


@checkpoints.command()
@click.argument("paths", nargs=-1)
@_DIR
@_STORE
def verify(paths: tuple[str, ...], directory: str | None, store: str | None) -> None:
    """Read every byte of checkpoints and compare it with their manifests.

    PATHS are directories, or bt://project[@job][/checkpoint] of the store. Without any, verifies
    all that is committed under --dir. Exits with 12 if any is damaged.
    """
    from bt_lightning.cli.verifying import verify_all

    if not verify_all(paths or _directory(directory), store):
        sys.exit(_FAILED)


@main.command()
@_DIR
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("checkpoints.trace.json"),
    show_default=True,
    help="File to write.",
)
def trace(directory: str | None, output: Path) -> None:
    """Draw what each save cost and came to, for https://ui.perfetto.dev or chrome://tracing."""
    import json

    from bt_lightning.cli.trace import trace as drawn
    from bt_lightning.localdir.events import read_events

    root = _directory(directory)
    try:
        events = list(read_events(root))
    except FileNotFoundError as error:
        msg = f"no run has saved anything under {root}: it has no events"
        raise CheckpointNotFoundError(msg) from error
    output.write_text(json.dumps(drawn(events)))
    saves = sum(event["event"] == "save" for event in events)
    click.echo(f"{output}: {saves} saves, {len(events)} events. Open it in https://ui.perfetto.dev")


def _directory(directory: str | None) -> Path:
    if not directory:
        msg = "name a directory with --dir (or BT_CHECKPOINT_DIR), or a store with --store"
        raise click.UsageError(msg)
    path = Path(directory).expanduser().resolve()
    if not path.is_dir():
        msg = f"{path} is no directory"
        raise click.UsageError(msg)
    return path


def _prefix(project: str | None, job_id: str | None, directory: str | None) -> str:
    from bt_lightning.settings import Job, Settings

    settings = Settings.from_environ(os.environ)
    if not (job_id or settings.job or directory):
        msg = "name the job with --job-id, or the --dir whose checkpoints it publishes"
        raise click.UsageError(msg)
    job = Job.named(settings, str(Path(directory or ".").expanduser().resolve()))
    return Job(
        project=project or job.project, job=job_id or job.job, node_rank=job.node_rank
    ).prefix
