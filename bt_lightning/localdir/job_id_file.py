"""Which job a checkpoint directory is of: a note of the run, for those who come to it later."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final

from bt_lightning.file_limits import RECORD
from bt_lightning.layout import DOT_DIR, node_of
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.settings import Job

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.settings import Settings

FILE: Final = "job-name.json"


def note_job(root: Path, prefix: str) -> None:
    """Note the project, job and node whose part of the store is `prefix`; called by the worker.

    It is only for people, so a disk that refuses it is no failure.
    """
    named = node_of(prefix)
    if named is not None:
        said = dict(zip(("project", "job", "node_rank"), named, strict=True))
        with contextlib.suppress(OSError):
            replace_small(root / DOT_DIR / FILE, json.dumps(said).encode("ascii"), durable=False)


def job_of(settings: Settings, root: Path) -> Job:
    """The job of the directory `root`: as `settings` name it, else as its run noted it.

    Without either, as `Job.named` says.
    """
    own = Job.named(settings, str(root))
    try:
        said = read_json(root / DOT_DIR / FILE, RECORD)
        project, job, rank = said["project"], said["job"], said["node_rank"]
    except (OSError, ValueError, TypeError, KeyError):
        return own
    if not (isinstance(project, str) and isinstance(job, str) and type(rank) is int):
        return own
    noted = Job(project=settings.project or project, job=settings.job or job, node_rank=rank)
    return own if settings.job else noted
