"""Who publishes from a directory: an id that lies in it, and outlives every process."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.files import write_out

if TYPE_CHECKING:
    from pathlib import Path


def owner_of(root: Path) -> str:
    """The id of the directory, made at the first call. By one process at a time.

    A full disk gets another at each call: then nobody is taken for its earlier holder.
    """
    file = root / DOT_DIR / "owner"
    try:
        if found := file.read_text(encoding="ascii").strip():
            return found
    except (OSError, UnicodeDecodeError):
        pass
    owner = uuid.uuid4().hex
    part = file.with_suffix(".part")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            write_out(stream, owner.encode("ascii"))
        part.replace(file)
    return owner
