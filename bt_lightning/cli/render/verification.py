"""Output of `verify`: one line for each checkpoint, whole or damaged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.render.progress_bar import progress
from bt_lightning.cli.render.table_csv_json import as_csv, as_json
from bt_lightning.cli.render.text import printable
from bt_lightning.cli.target_options import checkpoints_of, some_checkpoints
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.manage.checkpoint_at_path import source_at_path
from bt_lightning.manage.checkpoint_items import find
from bt_lightning.manage.default_directory import default_directory
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.verify import QUICK, Verdict, unreadable_folders, verify_items
from bt_lightning.path_layout import MANIFEST
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.find_target import Target


def verify_all(target: Target, names: Sequence[str], depth: str, output_format: str) -> bool:
    """Verify the named checkpoints, or all of the target; return False if any is damaged.

    A name is an id, a `bt://` URL, or the path of a checkpoint's directory.

    Raises:
        InvalidSettingError: nothing is named, or a `bt://` URL is invalid.
        StoreError: the store refused, which says nothing about a checkpoint.
    """
    pairs: list[tuple[JobCheckpoints, CheckpointItem]] = []
    verdicts: list[Verdict] = []
    if names:
        for name in names:
            try:
                pairs.append(_named(target, name))
            except CheckpointNotFoundError as error:
                verdicts.append(Verdict(name, whole=False, says=str(error)))
    else:
        source = checkpoints_of(target)
        pairs = [(source, item) for item in source.items()]
        unread = unreadable_folders(source)
        for reason in unread:
            click.secho(f"left out: {printable(reason)}", fg="yellow", err=True)
        damaged = [reason for reason in source.refused if reason not in unread]
        verdicts = [Verdict(source.name, whole=False, says=reason) for reason in damaged]
    total = 0 if depth == QUICK else sum(item.manifest.size for _, item in pairs)
    with progress("verify", total) as on_bytes:
        verdicts += verify_items(pairs, depth, on_bytes)
    _print(verdicts, output_format)
    return all(verdict.whole for verdict in verdicts)


def _named(target: Target, name: str) -> tuple[JobCheckpoints, CheckpointItem]:
    path = Path(name)
    if not is_bt(name) and (path / MANIFEST).exists():
        source = DirectoryCheckpoints(path.resolve())
        return source, find(source, ".")
    if (at_path := source_at_path(target, name)) is not None:
        return at_path
    named = target.directory or default_directory(Path.cwd(), target.job)[0]
    if not is_bt(name) and not target.store and (path.is_absolute() or not named):
        msg = f"no committed checkpoint at {path}: it has no {MANIFEST}"
        raise CheckpointNotFoundError(msg)
    return some_checkpoints(target, [name])[0]


def _print(verdicts: Sequence[Verdict], output_format: str) -> None:
    if output_format == "json":
        damaged = sum(not verdict.whole for verdict in verdicts)
        as_json({"damaged": damaged, "checkpoints": [asdict(verdict) for verdict in verdicts]})
    elif output_format == "csv":
        as_csv(
            ("Checkpoint", "Whole", "Says"),
            [[v.name, str(v.whole).lower(), v.says] for v in verdicts],
        )
    elif not verdicts:
        click.echo("nothing is committed there")
    for verdict in verdicts if output_format == "cli-table" else ():
        if verdict.whole:
            click.echo(f"whole    {printable(verdict.name)}  {verdict.says}")
        else:
            click.secho(f"damaged  {printable(verdict.says)}", fg="red")
