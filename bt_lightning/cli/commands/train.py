"""The group `train`: the commands of `truss train` and `baseten train`, which are ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from bt_lightning.cli.commands.cache import cache, summarize_cache
from bt_lightning.cli.commands.checkpoints import checkpoints
from bt_lightning.cli.commands.deploy import deploy
from bt_lightning.cli.commands.init import init
from bt_lightning.cli.commands.job_files import download_job
from bt_lightning.cli.commands.job_logs import show_logs, show_metrics
from bt_lightning.cli.commands.jobs import jobs, list_jobs_command, projects, show_job
from bt_lightning.cli.commands.recreate_job import recreate_job
from bt_lightning.cli.commands.run import run
from bt_lightning.cli.commands.stop_jobs import stop_jobs
from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import format_option, project_option, store_option

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMAT: Final = re.compile(r"^--output(-format)?(=|$)")
_WITH_VALUE: Final = frozenset({"--remote", "--log", "--profile", "--team"})
"""Options that say which server of Baseten's, and how its client logs: there is none here."""
_SERVICE: Final = {
    "capacity": "asks for the GPUs of an organization",
    "isession": "asks for a session on a machine of Baseten's: here, use ssh or tmux",
    "session": "asks for a session on a machine of Baseten's: here, use ssh or tmux",
    "update": "changes the priority in Baseten's queue: here, a job begins when it is started",
    "update_session": "changes a session on a machine of Baseten's: here, use ssh or tmux",
    "workstation": "starts a machine of Baseten's: here, start the job where you are, with `run`",
}


class _Train(Group):
    """Leaves out options that name a server, with a note, and answers for what only one has."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments, as ours spell them."""
        name, *rest = args
        if name in _SERVICE:
            msg = (
                f"`train {name}` {_SERVICE[name]}. It is for Baseten's service: truss train {name}"
            )
            raise click.UsageError(msg, ctx)
        kept, left_out = _without_service(name, rest)
        if left_out:
            click.secho(f"left out: {', '.join(left_out)}", dim=True, err=True)
        return super().resolve_command(ctx, [name, *kept])


def _without_service(name: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that mean something here, and the names of the others."""
    kept: list[str] = []
    left_out: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        option, sign, _ = word.partition("=")
        if word == "--":
            return [*kept, word, *rest], left_out
        if option in _WITH_VALUE:
            left_out.append(option)
            if not sign and rest:
                rest.pop(0)
        elif word == "--tail" and not (rest and rest[0].isdigit()):
            if "logs" in (name, *args[:1]):
                kept.append("--follow")
            else:
                left_out.append(word)  # `run` shows the output anyway
        elif word == "--non-interactive" and "list" not in args:
            left_out.append(word)
        else:
            kept.append(word)
    return kept, left_out


class _Checkpoint(Group):
    """`baseten train checkpoint`: the newest first, and URLs as a table."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments, with the defaults that it has there."""
        name, command, rest = super().resolve_command(ctx, args)
        words = {word.partition("=")[0] for word in rest}
        if name == "list":
            rest = ["--non-interactive", *rest]
            if not words & {"--order", "--sort"}:
                rest = ["--order", "desc", *rest]
        elif name == "files":  # its --output is a format; that of `urls` is a file
            rest = [_FORMAT.sub("-o", word) for word in rest]
            if not any(word.startswith("-o") for word in rest):
                rest = ["-o", "text", *rest]
        return name, command, rest


@click.group(cls=_Train)
def train() -> None:
    """Take the commands of `truss train` and `baseten train`, as they are spelled there.

    What names a server of Baseten's is left out; docs/cli.md has a table of all of them.
    """


@click.group("checkpoint", cls=_Checkpoint)
def checkpoint() -> None:
    """List checkpoints, the newest first, and the URLs of their files, as `baseten train` does."""


@train.command()
@store_option
@project_option
@click.option("--job-id", help="Show this job.")
@format_option
@click.pass_context
def view(
    ctx: click.Context,
    /,
    store: str | None,
    project: str | None,
    job_id: str | None,
    output_format: str,
) -> None:
    """List jobs, or show one, as `jobs list` and `jobs show` do."""
    if job_id is None:
        ctx.invoke(list_jobs_command, store=store, project=project, output_format=output_format)
    else:
        ctx.invoke(
            show_job, job_id=job_id, store=store, project=project, output_format=output_format
        )


project_cache = Group("cache", {"describe": summarize_cache}, help=cache.help)
project = Group("project", {**projects.commands, "cache": project_cache}, help=projects.help)
checkpoint.add_command(checkpoints.commands["list"])
checkpoint.add_command(checkpoints.commands["urls"], "files")
checkpoint.add_command(deploy, "deploy")
for command, name in (
    (run, "push"),
    (init, "init"),
    (cache, "cache"),
    (show_logs, "logs"),
    (show_metrics, "metrics"),
    (stop_jobs, "stop"),
    (recreate_job, "recreate"),
    (download_job, "download"),
    (deploy, "deploy_checkpoints"),
    (checkpoints.commands["urls"], "get_checkpoint_urls"),
    (checkpoints, "checkpoints"),
    (checkpoint, "checkpoint"),
    (jobs, "job"),
    (project, "project"),
):
    train.add_command(command, name)
