"""Groups of commands that take the spellings of `truss train` and `baseten train` as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST: Final = 1000
_OTHER_NAMES: Final = {
    "checkpoint": "checkpoints",
    "job": "jobs",
    "project": "projects",
    "describe": "show",
}
"""Names of `baseten train`, and ours."""
_ARGUMENTS: Final = {"--job-id": "job_id", "--project": "project", "--project-id": "project"}
NOT_HERE: Final = {
    "--remote": "it names a server of Baseten's; this command works on a store (--store) or a"
    " directory (--dir)",
    "--profile": "it names an account of Baseten's; this command works on a store (--store) or a"
    " directory (--dir)",
    "--team": "a store has projects and no teams: --project",
    "--jq": "print JSON and pipe it: -o json | jq EXPRESSION",
    "-q": "print JSON and pipe it: -o json | jq EXPRESSION",
    "--log": "set BT_LOG_LEVEL to see more, or less",
    "--non-interactive": "without a terminal nothing is asked; --yes answers where there is one",
    "--job-id": "this command is not about one job",
    "--accelerator": "a job runs on the machine that you start it on",
    "--node-count": "start it on each node: see --elastic",
    "--spot": "a job runs on the machine that you start it on, and goes on where it was: --retries",
    "--priority": "there is no queue: a job begins when you start it",
    "--since": "take the last lines with --tail N",
    "--start": "take the last lines with --tail N",
    "--end": "take the last lines with --tail N",
    "--min-level": "print all and filter: | grep",
    "--limit": "take the last lines with --tail N",
}
"""Options of theirs that mean nothing here, and what to do instead."""


class Group(click.Group):
    """A group whose commands have names and options of theirs too.

    `--job-id J` stands for the argument JOB_ID, `--output` for `--output-format`, `--direction` for
    `--order`, where a command has no such option of its own.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or of ours for it."""
        return super().get_command(ctx, cmd_name) or super().get_command(
            ctx, _OTHER_NAMES.get(cmd_name, cmd_name)
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, and the rest of the arguments as it spells them."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not isinstance(command, click.Group):
            rest = respelled(command, rest)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        """Invoke the command; say what to do instead of an option that only they have."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            instead = NOT_HERE.get(error.option_name)
            if instead is None:
                raise
            msg = f"{error.option_name} is not taken: {instead}"
            raise click.UsageError(msg, error.ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each."""
        names = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
        rows = [(name, self.commands[name].get_short_help_str(_LONGEST)) for name in names]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def respelled(command: click.Command, args: Sequence[str]) -> list[str]:
    """The arguments of a command with their spellings replaced by its own; up to a `--`."""
    own = {name for param in command.params for name in param.opts}
    found: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--" or command.context_settings.get("allow_interspersed_args") is False:
            return [*found, word, *rest]
        option, sign, value = word.partition("=")
        if option in own:
            found.append(word)
        elif _ARGUMENTS.get(option) in own:
            if sign or rest:
                found.append(value if sign else rest.pop(0))
        elif option == "--output" and "--output-format" in own:
            found.append(f"--output-format{sign}{value}")
        elif option == "--direction" and "--order" in own:
            found.append(f"--order{sign}{value}")
        else:
            found.append(word)
    return found
