"""The file that records which job a checkpoint directory belongs to, for later commands."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR, node_of
from bt_lightning.settings import Job

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.settings import Settings

FILE: Final = "job-name.json"


def note_job(root: Path, prefix: str) -> None:
    """Record the project, job and node of the store prefix `prefix`; called by the worker.

    An error of the disk is ignored: only commands use the file.
    """
    named = node_of(prefix)
    if named is not None:
        record = dict(zip(("project", "job", "node_rank"), named, strict=True))
        with contextlib.suppress(OSError):
            replace_small(root / DOT_DIR / FILE, json.dumps(record).encode("ascii"), durable=False)


def job_of(settings: Settings, root: Path) -> Job:
    """The job of the directory `root`: from `settings`, else from the file, else `Job.named`."""
    own = Job.named(settings, str(root))
    try:
        record = read_json(root / DOT_DIR / FILE, RECORD)
        project, job, rank = record["project"], record["job"], record["node_rank"]
    except (OSError, ValueError, TypeError, KeyError):
        return own
    if not (isinstance(project, str) and isinstance(job, str) and type(rank) is int):
        return own
    recorded = Job(project=settings.project or project, job=settings.job or job, node_rank=rank)
    return own if settings.job else recorded
