"""The record of a directory's job on its disk, and the request that its runner stops."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD
from bt_lightning.job_record import JobRecord, StopRequest
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "job.json"
_STOP: Final = "stop.json"
"""Names in the dot folder of the checkpoint directory."""


def read_local(root: Path) -> JobRecord | None:
    """The record of the last job of the directory; None if none can be read."""
    path = root / DOT_DIR / _FILE
    try:
        return JobRecord.from_bytes(read_small_file(path, RECORD), str(path))
    except (OSError, CheckpointCorruptError):
        return None


def write_local(root: Path, record: JobRecord) -> None:
    """Replace the record of the directory's job; called by its runner only.

    Raises:
        OSError: the disk refused.
    """
    replace_small(root / DOT_DIR / _FILE, record.to_bytes(), durable=False)


def ask_to_stop_local(root: Path, request: StopRequest) -> None:
    """Ask the runner of the directory's job to stop; any process may call it.

    Raises:
        OSError: the disk refused.
    """
    part = f".{_STOP}.{uuid.uuid4().hex}.part"
    replace_small(root / DOT_DIR / _STOP, request.to_bytes(), durable=False, part=part)


def read_stop_local(root: Path) -> StopRequest | None:
    """The request in the directory; None if there is none that can be read.

    Raises:
        OSError: the disk refused.
    """
    try:
        return StopRequest.from_bytes(read_small_file(root / DOT_DIR / _STOP, RECORD))
    except (FileNotFoundError, CheckpointCorruptError):
        return None


def delete_stop_local(root: Path) -> None:
    """Delete the request in the directory, and what killed ones left; called by its runner only.

    An error of the disk does no harm.
    """
    folder = root / DOT_DIR
    with contextlib.suppress(OSError):
        for path in (folder / _STOP, *folder.glob(f".{_STOP}.*.part")):
            path.unlink(missing_ok=True)
