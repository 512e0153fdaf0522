"""The `bt-lightning` command: its groups of commands, its errors and exit codes."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from bt_lightning import __version__
from bt_lightning.cli.commands.cache import cache
from bt_lightning.cli.commands.checkpoints import checkpoints
from bt_lightning.cli.commands.delete_jobs import delete_one_job, delete_project
from bt_lightning.cli.commands.deploy import deploy, undeploy
from bt_lightning.cli.commands.download_copy_export import copy, download, export
from bt_lightning.cli.commands.init import init
from bt_lightning.cli.commands.job_files import download_job, list_files
from bt_lightning.cli.commands.job_logs import show_events, show_logs, show_metrics
from bt_lightning.cli.commands.jobs import jobs, projects
from bt_lightning.cli.commands.protect_delete import delete, protect, unprotect
from bt_lightning.cli.commands.recreate_job import recreate_job
from bt_lightning.cli.commands.report import write_report
from bt_lightning.cli.commands.run import run
from bt_lightning.cli.commands.status_doctor import doctor, status
from bt_lightning.cli.commands.stop_jobs import stop_jobs
from bt_lightning.cli.commands.train import train
from bt_lightning.cli.commands.trash import trash
from bt_lightning.cli.commands.weights import weights
from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import directory_option, notice
from bt_lightning.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DirectoryFullError,
    DirectoryUnusableError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130


class _Group(Group):
    """Prints an error of this package as one line on stderr, and exits with its code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # writing any output failed
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            code = (DirectoryFullError if full else DirectoryUnusableError).exit_code
            _print_error(type(error).__name__, str(error), code, as_json=_wants_json(sys.argv[1:]))
            sys.exit(code)
        finally:
            _drop_unwritten_output()

    def invoke(self, ctx: click.Context) -> Any:
        as_json = _wants_json(sys.argv[1:])
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # characters that the locale lacks
        try:
            return super().invoke(ctx)
        except CheckpointError as error:
            _print_error(type(error).__name__, str(error), error.exit_code, as_json=as_json)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            if not as_json:
                raise
            _print_error("UsageError", error.format_message(), error.exit_code, as_json=True)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)


def _drop_unwritten_output() -> None:
    """Drop output that could not be written: Python would retry at exit, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)


def _print_error(name: str, message: str, exit_code: int, *, as_json: bool) -> None:
    from bt_lightning.cli.render.text import printable

    if as_json:
        payload = {"error": {"type": name, "message": message, "exit_code": exit_code}}
        click.echo(json.dumps(payload), err=True)
    else:
        click.secho(f"error: {printable(message)}", fg="red", err=True)


def _wants_json(args: Sequence[str]) -> bool:
    """Whether the arguments ask for JSON, also if other arguments are wrong."""
    names, kinds = ("-o", "--output-format", "--output"), ("json", "jsonl")
    together = {f"{name}{sign}{kind}" for name in names for sign in ("", "=") for kind in kinds}
    return any(
        name in names and value in kinds for name, value in itertools.pairwise(args)
    ) or bool(together.intersection(args))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bt-lightning")
def main() -> None:
    """Look after the checkpoints of PyTorch Lightning runs.

    Exit codes: 0 done, 1 answered no, 2 wrong usage or setting, 10 not found, 11 exists already, 12
    damaged, 13 newer format, 14-16 state that cannot be loaded or saved, 17 directory or file
    unusable, 18-19 snapshot given up, 20-22 store refused, 23-25 not all in the store, 26 disk too
    slow, 27 disk full, 28 only readable, 29 held by a running job, 30 protected, 31 the job runs
    already, 32 no such config, 33-36 ranks apart, 130 interrupted. `run` ends with that of its
    command.
    """


@main.command()
@directory_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    default="checkpoints.trace.json",
    show_default=True,
    help="File to write.",
)
def trace(directory: str | None, output: str) -> None:
    """Write a trace of all saves, for https://ui.perfetto.dev or chrome://tracing."""
    from pathlib import Path

    from bt_lightning.cli.render.perfetto_trace import render_trace
    from bt_lightning.localdir.event_log import read_events
    from bt_lightning.manage.find_target import Target, directory_named

    root = directory_named(Target(directory=directory), notice)
    try:
        events = list(read_events(root))
    except FileNotFoundError as error:
        msg = f"no run has saved anything under {root}: it has no events"
        raise CheckpointNotFoundError(msg) from error
    Path(output).write_text(json.dumps(render_trace(events)))
    saves = sum(event["event"] == "save" for event in events)
    click.echo(f"{output}: {saves} saves, {len(events)} events. Open it in https://ui.perfetto.dev")


jobs.add_command(delete_one_job)
projects.add_command(delete_project)
jobs.add_command(list_files)
jobs.add_command(download_job)
for command in (show_logs, show_events, show_metrics, stop_jobs, recreate_job, write_report):
    jobs.add_command(command)
main.add_command(init)
main.add_command(run)
main.add_command(status)
main.add_command(doctor)
main.add_command(write_report)
for command in (
    *(download, copy, export, protect, unprotect, delete, trash),
    *(deploy, undeploy),
):
    checkpoints.add_command(command)
for group in (cache, checkpoints, jobs, projects, train, weights):
    main.add_command(group)
