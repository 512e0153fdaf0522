"""The id of a checkpoint directory as a publisher, which outlives every process."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Final

from bt_lightning.file_limits import Bounds
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

_BOUNDS: Final = Bounds(1024, 4096)
"""Bounds of the file, since its content goes into every lease."""


def publisher_id_of(root: Path) -> str:
    """The id of the directory, made at the first call. Called by one process at a time.

    If the disk is full, each call returns a new id: then no lease counts as this directory's own.
    """
    file = root / DOT_DIR / "owner"
    try:
        if found := read_small_file(file, _BOUNDS).decode("ascii").strip():
            return found
    except (OSError, ValueError):
        pass
    owner = uuid.uuid4().hex
    with contextlib.suppress(OSError):
        replace_small(file, owner.encode("ascii"))
    return owner
