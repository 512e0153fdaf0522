"""The file that records which job a checkpoint directory belongs to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR, node_of
from bt_lightning.settings import Job

if TYPE_CHECKING:
    from bt_lightning.settings import Settings

FILE: Final = "job-name.json"


def note_job(root: Path, prefix: str, *, durable: bool = False) -> bool:
    """Record the project, job and node of the store prefix `prefix`, unless it is recorded.

    By the training process of the rank that writes, and by a worker that publishes. Returns
    whether it is recorded: a full disk may refuse.
    """
    named = node_of(prefix)
    if named is None:
        return False
    record: dict[str, Any] = dict(zip(("project", "job", "node_rank"), named, strict=True))
    record["path"] = str(root)
    if _read(root) == record:
        return True
    with contextlib.suppress(OSError):
        data = json.dumps(record).encode("ascii")
        replace_small(root / DOT_DIR / FILE, data, durable=durable)
        return True
    return False


def job_of(settings: Settings, root: Path) -> Job:
    """The job of the directory `root`: from `settings`, else from the file, else `Job.named`.

    For commands: what a copy of a directory says of the job counts as well.
    """
    own, found = Job.named(settings, str(root)), _job(_read(root))
    if found is None or settings.job:
        return own
    return Job(project=settings.project or found.project, job=found.job, node_rank=found.node_rank)


def own_job(settings: Settings, root: Path) -> Job | None:
    """The job that the directory says it belongs to, for a run; None if it says nothing.

    A copy elsewhere belongs to no job yet: two machines would write to one.
    """
    record = _read(root)
    found, place = _job(record), record.get("path")
    if found is None or not isinstance(place, str):
        return None  # of an older version: its name is that of the path
    with contextlib.suppress(OSError, ValueError):
        if Path(place).samefile(root):
            project = settings.project or found.project
            return Job(project=project, job=found.job, node_rank=settings.node_rank)
    return None


def _read(root: Path) -> dict[str, Any]:
    try:
        record = read_json(root / DOT_DIR / FILE, RECORD)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _job(record: dict[str, Any]) -> Job | None:
    project, job, rank = (record.get(name) for name in ("project", "job", "node_rank"))
    if not (isinstance(project, str) and isinstance(job, str) and type(rank) is int):
        return None
    return Job(project=project, job=job, node_rank=rank)
