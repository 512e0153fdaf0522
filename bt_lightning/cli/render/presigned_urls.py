"""Output of `urls`: URLs of checkpoint files, in the JSON of `truss train get_checkpoint_urls`."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.manage.checkpoint_items import find

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints


def write_urls(
    source: JobCheckpoints, name: str | None, expires_s: int, output: str | None
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
    text = json.dumps(payload, indent=2)
    if output is None:
        click.echo(text)
        return
    path = Path(output)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text + "\n")
    click.echo(f"{path}: {len(payload['checkpoint_artifacts'])} URLs, for {expires_s} s")


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
