"""The newest checkpoint that only the store holds: a note for a start at which it does not answer.

Such a start would take the newest of the disk for the newest of the job. Written before a local
copy is deleted; a copy that is newer than the note makes the note mean nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bt_lightning.file_limits import RECORD
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.small_files import read_json, replace_small

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import Manifest

FILE = "store_only.json"


@dataclass(frozen=True, slots=True)
class NewestInStore:
    """What the store held alone."""

    checkpoint: str
    step: int
    generation: int
    created_at: str

    @property
    def order(self) -> tuple[int, int, str]:
        """As `Manifest.order`."""
        return (self.step, self.generation, self.created_at)


def note_newest_in_store(root: Path, manifest: Manifest) -> None:
    """Note that only the store will hold this one, unless a newer one is noted; durable.

    Raises:
        OSError: the disk refused.
    """
    known = newest_in_store(root)
    if known is not None and known.order >= manifest.order:
        return
    away = NewestInStore(
        manifest.checkpoint_id, manifest.step, manifest.generation, manifest.created_at
    )
    replace_small(root / DOT_DIR / FILE, json.dumps(asdict(away)).encode("ascii") + b"\n")


def newest_in_store(root: Path) -> NewestInStore | None:
    """What was noted; None if nothing was, or nothing that can be read."""
    try:
        away = NewestInStore(**read_json(root / DOT_DIR / FILE, RECORD))
    except (OSError, ValueError, TypeError):
        return None
    kinds = (type(away.step), type(away.generation), type(away.created_at))
    return away if kinds == (int, int, str) else None
