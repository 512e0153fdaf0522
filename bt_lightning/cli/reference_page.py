"""The reference page `docs/cli.md`, generated from the commands.

python -m bt_lightning.cli.reference_page > docs/cli.md
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from bt_lightning import errors
from bt_lightning.cli.app import main
from bt_lightning.cli.commands.train import train
from bt_lightning.cli.names_elsewhere import other_names

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """\
# The command line

Generated from the commands by `python -m bt_lightning.cli.reference_page`; a test compares it.

<!-- page: head -->
Lists are printed as a table, as CSV, or as JSON (`-o cli-table|csv|json`), or as JSON with a line
for each element (`-o jsonl`); `-o text` is the table, and `-o none` prints nothing, for a script
that wants the exit code. Keys of the JSON are stable; new ones may be added. Times are ISO 8601 in
UTC with their zone, sizes are bytes, and a metric that is not finite is one of the texts `NaN`,
`Infinity`, `-Infinity`. With `-o json` an error is JSON too, on stderr:
`{"error": {"type", "message", "exit_code"}}`. Without a terminal there are no questions and no
colours; `NO_COLOR` turns colours off on a terminal. Without `--dir` and `--store`, a command looks
into `./bt_checkpoints`, where trainings save by default.

For shell completion, add one line to the shell's start file:

| Shell | Line |
|---|---|
| bash | `eval "$(_BT_LIGHTNING_COMPLETE=bash_source bt-lightning)"` |
| zsh | `eval "$(_BT_LIGHTNING_COMPLETE=zsh_source bt-lightning)"` |
| fish | `_BT_LIGHTNING_COMPLETE=fish_source bt-lightning \\| source` |

<!-- page: commands -->
"""
_TABLES = "<!-- page: tables -->"
"""The site shows the commands by itself, between what is before and behind these marks."""


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD, *_commands("bt-lightning", main), _TABLES, _exit_codes()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _commands(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        if name != "bt-lightning":
            yield f"## {name}\n\n{_help(command)}"
        if command is train:
            yield other_names()
            return
        for inner in sorted(command.commands):
            yield from _commands(f"{name} {inner}", command.commands[inner])
        return
    level = "###" if name.count(" ") > 1 else "##"
    arguments = [
        f"[{param.human_readable_name}]" if not param.required else param.human_readable_name
        for param in command.params
        if isinstance(param, click.Argument)
    ]
    usage = " ".join([name, *arguments, "[OPTIONS]"])
    rows = [_option(param) for param in command.params if isinstance(param, click.Option)]
    table = "\n".join(["| Option | What it does |", "|---|---|", *rows]) if rows else ""
    yield f"{level} {name}\n\n`{usage}`\n\n{_help(command)}\n\n{table}"


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b", "")


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    kind = option.type
    if isinstance(kind, click.Choice):
        names += f" `{'/'.join(map(str, kind.choices))}`"
    elif not option.is_flag:
        names += f" `{option.metavar or kind.name.upper()}`"
    said = (option.help or "").replace("|", "\\|")
    shown = option.show_default
    if shown and not option.is_flag:
        said += f" Default: {shown if isinstance(shown, str) else option.default}."
    if option.envvar:
        said += f"  [env: {option.envvar}]"
    return f"| {names} | {said} |"


def _exit_codes() -> str:
    rows = {
        0: "done",
        1: "the answer is no: `diff` found differences, `doctor` found failures, `jobs stop` saw a"
        " job that has not ended in time, or a question was answered with no",
        2: "wrong usage, or an invalid setting (`InvalidSettingError`)",
        130: "interrupted",
    }
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.CheckpointError):
            first = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0].removeprefix("Raised")
            first = first.lstrip(" ,").removeprefix("when ").removeprefix("once, when ")
            rows.setdefault(kind.exit_code, f"`{kind.__name__}`: {first.rstrip('.')}")
    lines = [f"| {code} | {said} |" for code, said in sorted(rows.items())]
    of_run = (
        "`run` ends with the exit code of its command, as a shell does: 127 if there is no such"
        " program, 126 if it cannot be run, 128 + N after signal N. Where the command ends with 0,"
        " a job that signal N or `jobs stop` (N = 15) stopped ends with 128 + N, and one of which"
        " not everything is in the store with 25.\n"
    )
    return "\n".join(["## Exit codes\n", of_run, "| Code | Meaning |", "|---|---|", *lines])


if __name__ == "__main__":
    click.echo(reference(), nl=False)
