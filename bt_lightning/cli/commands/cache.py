"""The commands for the caches on this machine: of jobs, and of manifests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import format_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manage.cache_summary import CacheEntry

_SORTS = ("filepath", "size", "modified", "type", "permissions")
_TITLES = (
    *("File Path", "Size (bytes)", "Size (human readable)", "Modified", "Type", "Permissions"),
)


@click.group(cls=Group)
def cache() -> None:
    """Look at the caches of this machine: that of its jobs, and that of lists of stores."""


@cache.command("summarize")
@click.argument("project", required=False)
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="Cache folder; by default $BT_PROJECT_CACHE_DIR, else where `run` makes it.",
)
@click.option(
    "--sort",
    type=click.Choice([*_SORTS, "path"]),
    default="filepath",
    show_default=True,
    help="What to sort by; path is filepath.",
)
@click.option(
    "--order",
    type=click.Choice(["asc", "desc"]),
    default="asc",
    show_default=True,
    help="Smallest or largest first.",
)
@format_option
def summarize_cache(
    project: str | None, path: Path | None, sort: str, order: str, output_format: str
) -> None:
    """Summarize the cache of this machine's jobs: each file and folder, and its size.

    PROJECT is only repeated in the output: here, the jobs of all projects share one cache. The size
    of a folder is that of all files in it.
    """
    from datetime import datetime, timezone

    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.human_units import human_size
    from bt_lightning.manage.cache_summary import cache_folder, summarize

    folder = cache_folder(os.environ, path)
    entries = sorted(summarize(folder), key=lambda entry: entry.path)
    entries.sort(key=_key(sort), reverse=order == "desc")
    files = [entry for entry in entries if entry.kind != "directory"]
    size = sum(entry.size for entry in files)
    rows = [_row(entry) for entry in entries]
    if output_format == "json":
        as_json(
            {
                "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "project_id": project,
                "path": str(folder),
                "total_files": len(files),
                "total_size_bytes": size,
                "total_size_human_readable": human_size(size),
                "files": rows,
            }
        )
    elif output_format == "csv":
        as_csv(_TITLES, [list(row.values()) for row in rows])
    elif not rows:
        click.echo(f"The cache at {folder} is empty.")
    else:
        columns = (
            Column("File Path", lambda row: row["path"]),
            Column("Size", lambda row: row["size_human_readable"], right=True),
            Column("Modified", lambda row: row["modified"][:19].replace("T", " ") + "Z", rank=1),
            Column("Type", lambda row: row["type"], rank=2),
            Column("Permissions", lambda row: row["permissions"], rank=3),
        )
        table(f"{folder}: {len(files):,} files, {human_size(size)}", columns, rows)


@cache.command("manifests")
@click.option("--delete", "deletes", is_flag=True, help="Delete them; later lists read the store.")
@format_option
def cached_manifests_command(deletes: bool, output_format: str) -> None:
    """Say how much this user's lists of stores keep on this machine, or delete it.

    They keep facts and manifests of checkpoints, by the versions that the store's listing gives, so
    nothing old is shown. Above 256 MB, those of the lists that were made first are deleted.
    """
    from bt_lightning.cli.render.table_csv_json import as_csv, as_json
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.human_units import human_size
    from bt_lightning.store.catalog.cache_folder import (
        MOST_CACHED_BYTES,
        cached_manifests,
        delete_cached_manifests,
        user_cache,
    )

    folder = user_cache(os.environ)
    if folder is None:
        msg = "there is no cache: set HOME or XDG_CACHE_HOME to an absolute path"
        raise InvalidSettingError(msg)
    found = delete_cached_manifests(folder) if deletes else cached_manifests(folder)
    facts = {
        "path": str(folder),
        "total_files": found.number,
        "total_size_bytes": found.size,
        "most_size_bytes": MOST_CACHED_BYTES,
        "deleted": deletes,
    }
    if output_format == "json":
        as_json(facts)
    elif output_format == "csv":
        as_csv(list(facts), [list(facts.values())])
    else:
        were = "were deleted" if deletes else f"of at most {human_size(MOST_CACHED_BYTES)}"
        click.echo(f"{folder}: {found.number:,} files, {human_size(found.size)}, {were}")


def _key(sort: str) -> Callable[[CacheEntry], Any]:
    keys: dict[str, Callable[[CacheEntry], Any]] = {
        "size": lambda entry: entry.size,
        "modified": lambda entry: entry.modified,
        "type": lambda entry: entry.kind,
        "permissions": lambda entry: entry.permissions,
    }
    return keys.get(sort, lambda entry: entry.path)


def _row(entry: CacheEntry) -> dict[str, Any]:
    from datetime import datetime, timezone

    from bt_lightning.human_units import human_size

    return {
        "path": entry.path,
        "size_bytes": entry.size,
        "size_human_readable": human_size(entry.size),
        "modified": datetime.fromtimestamp(entry.modified, timezone.utc).isoformat(),
        "type": entry.kind,
        "permissions": entry.permissions,
    }
