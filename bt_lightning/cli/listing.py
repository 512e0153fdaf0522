"""The table of checkpoints, as text, CSV or JSON."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.committed import list_committed
from bt_lightning.manifest import Manifest
from bt_lightning.store.cache import user_cache
from bt_lightning.store.catalog import look
from bt_lightning.store.projects import view_job
from bt_lightning.store.remote import open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.store.tree import checkpoint_of, open_bt_store
from bt_lightning.uri import parse

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3))


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint, as every output format shows it."""

    checkpoint_id: str
    step: int
    epoch: int
    generation: int
    size_bytes: int
    size_human_readable: str
    created_at: str
    metrics: dict[str, float]


def human_size(size: int) -> str:
    """Decimal units, as Baseten shows them: `1.50 GB`, `512 B`."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def rows_of_directory(directory: Path) -> list[Row]:
    """What is committed under a directory; what cannot be read is said on stderr."""
    found, refused = list_committed(directory)
    for item in refused:
        click.secho(f"left out: {item.reason}", fg="yellow", err=True)
    return [_row(checkpoint.manifest) for checkpoint in found]


def rows_of_store(url: str, prefix: str) -> list[Row]:
    """What is committed in one job's part of a store; what cannot be read is said on stderr."""
    manifests = []
    listing = look(RetryingStore(open_store(url)), prefix, user_cache(os.environ))
    for folder, data in listing.committed.items():
        try:
            manifests.append(Manifest.from_bytes(data, folder))
        except CheckpointCorruptError as error:
            click.secho(f"left out: {error}", fg="yellow", err=True)
    return [_row(m) for m in sorted(manifests, key=lambda m: m.order, reverse=True)]


def rows_of_url(url: str, store: str | None) -> list[Row]:
    """What is committed of the job, or the checkpoints, that a `bt://` URL names, newest first."""
    uri = parse(url)
    view = view_job(open_bt_store(store, None), uri.project, uri.revision)
    if uri.path:
        return [_row(checkpoint_of(view, uri, uri.project).manifest)]
    return [_row(checkpoint.manifest) for checkpoint in view.checkpoints()]


def render(rows: list[Row], output_format: str) -> None:
    """Print the rows to stdout."""
    if output_format == "json":
        payload = {"total_checkpoints": len(rows), "checkpoints": [asdict(row) for row in rows]}
        click.echo(json.dumps(payload, indent=2))
    elif output_format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(Row.__slots__)
        writer.writerows(
            [json.dumps(v) if isinstance(v, dict) else v for v in asdict(row).values()]
            for row in rows
        )
    elif not rows:
        click.echo("No checkpoints found.")
    else:
        _table(rows)


def _table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Checkpoints", title_justify="left")
    for name in ("Checkpoint", "Step", "Epoch", "Size", "Created at", "Metrics"):
        table.add_column(name, justify="right" if name in {"Step", "Epoch", "Size"} else "left")
    for row in rows:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items())
        cells = [row.checkpoint_id, row.step, row.epoch, row.size_human_readable]
        cells += [row.created_at[:19].replace("T", " ") + "Z", metrics]
        table.add_row(*[Text(_printable(str(cell))) for cell in cells])
    Console().print(table)


def _printable(text: str) -> str:
    """No control character of a name reaches a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _row(manifest: Manifest) -> Row:
    return Row(
        checkpoint_id=manifest.checkpoint_id,
        step=manifest.step,
        epoch=manifest.epoch,
        generation=manifest.generation,
        size_bytes=manifest.size,
        size_human_readable=human_size(manifest.size),
        created_at=manifest.created_at,
        metrics=manifest.metrics,
    )
