"""Output of `urls`: URLs of checkpoint files, in the JSON of `truss train get_checkpoint_urls`."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.render.table_csv_json import Column, as_json, table
from bt_lightning.cli.render.text import short_time
from bt_lightning.cli.target_options import CHOSEN_FORMAT
from bt_lightning.human_units import human_size
from bt_lightning.manage.checkpoint_items import find

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints


def write_urls(
    source: JobCheckpoints,
    name: str | None,
    expires_s: int,
    output: str | None,
    output_format: str = "json",
) -> None:
    """Print the URLs of one checkpoint or of all, or write them to a file of mode 0600."""
    items = [find(source, name)] if name else source.items()
    payload = {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "job": {
            "job_id": source.job,
            "training_project": {"name": source.project},
            "expires_in_seconds": expires_s,
        },
        "checkpoint_artifacts": [row for item in items for row in _rows(source, item, expires_s)],
    }
    if output is None:
        _print(payload, output_format)
        return
    text = json.dumps(payload, indent=2)
    path = Path(output)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text + "\n")
    click.echo(f"{path}: {len(payload['checkpoint_artifacts'])} URLs, for {expires_s} s")


def _print(payload: dict[str, Any], output_format: str) -> None:
    rows = payload["checkpoint_artifacts"]
    if output_format == "json":
        chosen = click.get_current_context().meta.get(CHOSEN_FORMAT)
        as_json({"total_files": len(rows), "files": rows} if chosen == "jsonl" else payload)
        return
    columns = (
        Column("Node", lambda row: str(row["node_rank"]), right=True, rank=2),
        Column("Name", lambda row: row["relative_file_name"]),
        Column("Size", lambda row: human_size(row["size_bytes"]), right=True, rank=1),
        Column("Modified", lambda row: short_time(row["last_modified"]), rank=3),
        Column("URL", lambda row: row["url"]),
    )
    table(f"Files of the checkpoints of job: {payload['job']['job_id']}", columns, rows)


def _rows(source: JobCheckpoints, item: CheckpointItem, expires_s: int) -> list[dict[str, Any]]:
    return [
        {
            "url": source.url(item, entry.path, expires_s),
            "relative_file_name": f"{item.name}/{entry.path}",
            "node_rank": item.node_rank,
            "size_bytes": entry.size,
            "last_modified": item.manifest.created_at,
        }
        for entry in item.manifest.files
    ]
