"""The commands for job files, which belong to no checkpoint: files, download."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.target_options import format_option, project_option, store_option

if TYPE_CHECKING:
    from bt_lightning.manage.job_files import StoredFile
    from bt_lightning.store.interface import Store

_include = click.option("--include", multiple=True, metavar="GLOB", help="Only these files.")
_exclude = click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files.")


@click.command("files")
@click.argument("job_id")
@store_option
@project_option
@_include
@_exclude
@format_option
def list_files(
    job_id: str,
    store: str | None,
    project: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    output_format: str,
) -> None:
    """List the files of a job that belong to no checkpoint: logs, results, other folders.

    In a GLOB, `*` does not match a `/`, `**` does: `*.json` selects files at the top, `**/*.json`
    also those in folders.
    """
    from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, table
    from bt_lightning.human_units import human_size

    _, found = _found(job_id, store, project, include, exclude)
    rows = [
        {"relative_file_name": file.path, "node_rank": file.node_rank, "size_bytes": file.size}
        for file in found
    ]
    if output_format == "json":
        as_json({"job_id": job_id, "total_files": len(rows), "files": rows})
    elif output_format == "csv":
        as_csv(("File", "Node", "Size (bytes)"), [list(row.values()) for row in rows])
    else:
        columns = (
            Column("File", lambda file: file.path),
            Column("Node", lambda file: str(file.node_rank), right=True, rank=1),
            Column("Size", lambda file: human_size(file.size), right=True),
        )
        table(f"Files of the job {job_id}", columns, found)


@click.command("download")
@click.argument("job_id")
@store_option
@project_option
@click.option(
    "--target-directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="the current directory",
    help="Directory to write to.",
)
@_include
@_exclude
@click.option("--replace", is_flag=True, help="Replace existing files that differ.")
def download_job(
    job_id: str,
    store: str | None,
    project: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    target_directory: Path,
    replace: bool,
) -> None:
    """Download the files of a job that belong to no checkpoint.

    Each appears when it is complete. If other files have their names in the directory, nothing is
    downloaded, unless --replace is given. They have no digests, so they cannot be verified. For
    checkpoints, see `checkpoints download`.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size
    from bt_lightning.manage.job_files import download_job_files

    opened, found = _found(job_id, store, project, include, exclude)
    size = sum(file.size for file in found)
    with progress(job_id, size) as on_bytes:
        download_job_files(opened, found, target_directory, on_bytes, replace=replace)
    click.echo(printable(f"{target_directory}: {len(found)} files, {human_size(size)}"))


def _found(
    job_id: str,
    store: str | None,
    project: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> tuple[Store, list[StoredFile]]:
    from bt_lightning.glob_patterns import Patterns
    from bt_lightning.manage.find_target import project_of
    from bt_lightning.manage.job_files import job_files
    from bt_lightning.settings import Settings
    from bt_lightning.store.catalog.bt_url_tree import open_bt_store

    opened = open_bt_store(store, None)
    project = project_of(opened, project or Settings.from_environ(os.environ).project, job_id)
    return opened, job_files(opened, project, job_id, Patterns(include, exclude))
