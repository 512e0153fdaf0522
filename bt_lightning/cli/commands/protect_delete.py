"""The commands protect, unprotect and delete for checkpoints."""

from __future__ import annotations

import getpass
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

import click

from bt_lightning.cli.target_options import (
    checkpoints_of,
    format_option,
    some_checkpoints,
    target_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.manage.find_target import Target
    from bt_lightning.manage.job_objects import Files

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
FOR_GOOD = "for good"
_NAMED = 20
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="List what would be deleted; delete nothing."
)


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
@click.option("--why", default="", help="Reason; shown when somebody tries to delete it.")
@click.option("--by", default=None, help="Name; by default the user of this machine.")
def protect(checkpoints: tuple[str, ...], target: Target, why: str, by: str | None) -> None:
    """Protect checkpoints from deletion by commands, jobs and retention rules."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.manage.deployment import protect_for_person

    by = user_name() if by is None else by
    for source, item in some_checkpoints(target, checkpoints):
        protect_for_person(source, item, by=by, why=why, at=now_in_utc())
        click.echo(printable(f"{item.name}: protected"))


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
def unprotect(checkpoints: tuple[str, ...], target: Target) -> None:
    """Remove the protection of checkpoints; what is deployed stays protected by that."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.errors import CheckpointProtectedError
    from bt_lightning.manage.deployment import unprotect_for_person

    deployed = False
    for source, item in some_checkpoints(target, checkpoints):
        left = unprotect_for_person(source, item)
        deployed = deployed or left is not None
        said = "no longer protected" if left is None else f"still protected: {left.reason}"
        click.echo(printable(f"{item.name}: {said}"))
    if deployed:
        sys.exit(CheckpointProtectedError.exit_code)


@click.command()
@click.argument("checkpoints", nargs=-1)
@target_options
@click.option(
    "--keep-last",
    type=click.IntRange(0),
    metavar="N",
    help="Delete all but the N newest of each fit (and the best).",
)
@click.option(
    "--keep-best",
    multiple=True,
    metavar="METRIC",
    help="Delete all but the best by this metric (and the last).",
)
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Which value of a metric is best.",
)
@click.option(
    "--trash",
    type=click.IntRange(1),
    metavar="DAYS",
    help="Move them to the trash for so long; `trash restore` brings them back.",
)
@dry_run_option
@yes_option
@format_option
def delete(
    checkpoints: tuple[str, ...],
    target: Target,
    keep_last: int | None,
    keep_best: tuple[str, ...],
    mode: Literal["min", "max"],
    trash: int | None,
    dry_run: bool,
    yes: bool,
    output_format: str,
) -> None:
    """Delete the named checkpoints, or all except those that --keep-... keeps.

    Protected ones stay; if one of them was named, the exit code is 30. Checkpoints of a running job
    are deleted by its own worker with its next save. With both --store and --dir, deletes from
    both.
    """
    from bt_lightning.cli.render.text import printable
    from bt_lightning.errors import CheckpointProtectedError
    from bt_lightning.manage.delete import (
        delete_items,
        finish_deletions,
        kept_by_policy,
        kept_by_rule,
    )
    from bt_lightning.manage.trash import trash_items
    from bt_lightning.uri import is_bt

    rule = keep_last is not None or bool(keep_best)
    if rule == bool(checkpoints):
        msg = "name checkpoints, or say which to keep with --keep-last or --keep-best; not both"
        raise click.UsageError(msg)
    if rule or not all(map(is_bt, checkpoints)):
        source = checkpoints_of(target)
        finished = [] if dry_run else finish_deletions(source)
        checkpoints = tuple(name for name in checkpoints if name not in finished)
        if finished:
            click.echo(f"finished the deletion of {printable(', '.join(finished))}", err=True)
        if not rule and not checkpoints:
            render_deletion(finished, [], [], output_format)
            return
    if rule:
        items = source.items()
        kept = kept_by_rule(items, keep_last, keep_best, mode)
        items = [item for item in items if item.name not in kept]
    else:
        found = some_checkpoints(target, checkpoints)
        source = found[0][0]
        items = list({item.where: item for _, item in found}.values())
        if any(own.name != source.name for own, _ in found):
            msg = "the checkpoints are of several jobs: delete those of one job at a time"
            raise click.UsageError(msg)
    names = [item.name for item in items]
    staying = kept_by_policy(items)
    protected = [name for name in names if name in staying]
    if dry_run or not items:
        going = [name for name in names if name not in protected]
        render_deletion(going, [], protected, output_format, dry_run=True)
        return
    size = sum(item.manifest.size for item in items if item.name not in staying)
    what = f"{len(names) - len(protected)} checkpoints of {source.name}"
    lasts = FOR_GOOD if trash is None else f"for {trash} days at least, then for good"
    ask(what, "yes", size, names, yes=yes, lasts=lasts)
    done = delete_items(source, items) if trash is None else trash_items(source, items, trash)
    word = "deleted" if trash is None else f"put aside for {trash} days"
    whys = {one.name: source.protection(one) for one in items if one.name in done.kept}
    reasons = {name: found.reason for name, found in whys.items() if found is not None}
    render_deletion(done.deleted, done.asked, done.kept, output_format, word=word, reasons=reasons)
    if done.kept and not rule:  # a named one is still there: a script must see that
        sys.exit(CheckpointProtectedError.exit_code)


def ask(
    what: str,
    word: str,
    size: int,
    names: Sequence[str],
    *,
    yes: bool,
    lasts: str = FOR_GOOD,
    files: Files | None = None,
) -> None:
    """Ask the user to type `word`, else exit with code 1; with `yes`, do not ask.

    Raises:
        click.UsageError: stdin is no terminal.
    """
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size

    if yes:
        return
    if not sys.stdin.isatty():
        msg = f"this deletes {lasts}, and there is no terminal to ask on: say --yes, or --dry-run"
        raise click.UsageError(msg)
    for name in names:
        click.echo(f"  {printable(name)}", err=True)
    for line in _file_lines(files):
        click.echo(f"  {line}", err=True)
    click.echo(f"This deletes {printable(what)}, {human_size(size)}, {lasts}.", err=True)
    typed = click.prompt(
        f"Type {printable(word)} to continue", default="", show_default=False, err=True
    )
    if typed.strip() != word:
        click.echo("Nothing was deleted.", err=True)
        sys.exit(1)


def confirm(question: str, what: str, *, yes: bool) -> None:
    """Ask, and exit with code 1 if the answer is no; with `yes`, do not ask.

    Raises:
        click.UsageError: stdin is no terminal; `what` says what would happen.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        msg = f"{what}, and there is no terminal to ask on: say --yes"
        raise click.UsageError(msg)
    if not click.confirm(question, err=True):
        sys.exit(1)


def render_deletion(
    deleted: Sequence[str],
    asked: Sequence[str],
    kept: Sequence[str],
    output_format: str,
    *,
    dry_run: bool = False,
    word: str = "deleted",
    files: Files | None = None,
    left: Sequence[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Print what was, or would be, deleted; `word` says what was done.

    `reasons` are those of protections, by checkpoint. `files` belong to no checkpoint and are
    deleted with their job; `left` arrived meanwhile.
    """
    from bt_lightning.cli.render.table_csv_json import as_csv, as_json
    from bt_lightning.cli.render.text import printable

    goes = "would be deleted" if dry_run else word
    rows = [
        *((name, goes) for name in deleted),
        *((name, "requested from the running job") for name in asked),
        *((name, f"kept: protected {(reasons or {}).get(name, '')}".rstrip()) for name in kept),
        *((name, "left: it arrived meanwhile") for name in left[:_NAMED]),
    ]
    if output_format == "json":
        said = {"deleted": list(deleted), "asked": list(asked), "kept_checkpoints": list(kept)}
        other = {} if files is None else {"files": files.as_dict(), "left": len(left)}
        as_json({**said, **other, "dry_run": dry_run})
    elif output_format == "csv":
        named = [] if files is None else [(name, goes) for name in files.names]
        more = _more_files(files)
        as_csv(("Checkpoint", "Result"), [*rows, *named, *((line, goes) for line in more)])
    elif not rows and not (files and files.number):
        click.echo("There is nothing to delete.")
    else:
        for name, result in rows:
            click.echo(printable(f"{name}: {result}"))
        for line in _file_lines(files, f": {goes}"):
            click.echo(line)
        if len(left) > _NAMED:
            click.echo(f"... and {len(left) - _NAMED:,} more that arrived meanwhile were left")


def _file_lines(files: Files | None, result: str = "") -> list[str]:
    """Lines with the number, bytes and first names of files that belong to no checkpoint."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size

    if files is None or not files.number:
        return []
    size = human_size(files.size)
    several = "" if files.number == 1 else "s"
    first = f"{files.number:,} file{several} of no checkpoint, {size}{result}"
    return [first, *(f"  {printable(name)}" for name in files.names), *_more_files(files)]


def _more_files(files: Files | None) -> list[str]:
    rest = 0 if files is None else files.number - len(files.names)
    return [f"  ... and {rest:,} more"] if rest else []


def now_in_utc() -> str:
    """The time as protections record it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def user_name() -> str:
    """The user of this machine; empty where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""  # the user of a container may have no name
