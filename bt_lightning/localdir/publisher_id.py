"""Who publishes from a directory: an id that lies in it, and outlives every process."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Final

from bt_lightning.file_limits import Bounds
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.small_files import read_small_file, replace_small

if TYPE_CHECKING:
    from pathlib import Path

_BOUNDS: Final = Bounds(1024, 4096)
"""It goes into each lease as it is."""


def publisher_id_of(root: Path) -> str:
    """The id of the directory, made at the first call. By one process at a time.

    A full disk gets another at each call: then nobody is taken for its earlier holder.
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
