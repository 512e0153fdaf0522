"""The command for a page about jobs: report."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.target_options import checkpoints_of, target_options

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import JobCheckpoints
    from bt_lightning.manage.find_target import Target

_MOST_JOBS = 32


@click.command("report")
@click.argument("jobs", nargs=-1)
@target_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
def write_report(jobs: tuple[str, ...], target: Target, output: Path) -> None:
    """Write one HTML page about a job, or about several to compare them.

    JOBS are jobs of the store, directories (with a slash) or bt:// URLs. The page shows metrics at
    every logged step, restarts and the work that was done again, saves on their way to the disk and
    the store, failures. It needs no other file, and no machine of the job: what happened is told by
    the logs in the store, and in a directory if one is named.
    """
    from datetime import datetime, timezone

    from bt_lightning import __version__
    from bt_lightning.cli.report.html_report import page
    from bt_lightning.cli.report.job_sections import counted
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.manage.job_facts import read_job_facts

    if len(jobs) > _MOST_JOBS:
        msg = f"{len(jobs)} jobs are named: a page takes {_MOST_JOBS}"
        raise InvalidSettingError(msg)
    sources = [_opened(target, name) for name in dict.fromkeys(jobs)] or [_opened(target, None)]
    facts = [read_job_facts(source) for source in sources]
    made_at = datetime.now(timezone.utc).isoformat()
    output.write_text(page(facts, made_at, __version__), encoding="utf-8")
    parts = [
        counted(sum(len(job.items) for job in facts), "checkpoint"),
        counted(sum(job.num_events for job in facts), "event"),
        f"{counted(sum(job.num_rows for job in facts), 'row')} of metrics",
    ]
    click.echo(f"{output}: {', '.join(parts)}")


def _opened(target: Target, name: str | None) -> JobCheckpoints:
    """The job of that name; of a job in the store its logs are enough."""
    from bt_lightning.manage.find_target import project_of
    from bt_lightning.settings import Settings
    from bt_lightning.store.catalog.bt_url_tree import open_bt_store
    from bt_lightning.uri import is_bt

    if name is not None and is_bt(name):
        return checkpoints_of(replace(target, url=name, directory=None))
    if name is not None and ("/" in name or not target.store):
        return checkpoints_of(replace(target, directory=name, job=None))
    settings = Settings.from_environ(os.environ)
    job = name or target.job or (None if target.directory else settings.job)
    if target.store and job is not None:
        project = target.project or settings.project
        found = project_of(open_bt_store(target.store, None), project, job)
        return checkpoints_of(replace(target, project=found, job=job))
    return checkpoints_of(target)
