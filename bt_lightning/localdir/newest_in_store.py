"""The record of the newest checkpoint that only the store holds, for a start without the store.

Without the record such a start would resume from the newest checkpoint on the disk, which may be
older than the job's. It is written before a local copy is evicted. A newer checkpoint on the disk
makes it irrelevant.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import Manifest

FILE = "store_only.json"


@dataclass(frozen=True, slots=True)
class NewestInStore:
    """The newest checkpoint that lies only in the store."""

    checkpoint: str
    step: int
    generation: int
    created_at: str

    @property
    def order(self) -> tuple[int, int, str]:
        """As `Manifest.order`."""
        return (self.step, self.generation, self.created_at)


def note_newest_in_store(root: Path, manifest: Manifest) -> None:
    """Record that only the store will hold this checkpoint, unless a newer one is recorded.

    Durable. Called in the worker, before the local copy is evicted.

    Raises:
        OSError: the disk refused.
    """
    known = newest_in_store(root)
    if known is not None and known.order >= manifest.order:
        return
    newest = NewestInStore(
        manifest.checkpoint_id, manifest.step, manifest.generation, manifest.created_at
    )
    replace_small(root / DOT_DIR / FILE, json.dumps(asdict(newest)).encode("ascii") + b"\n")


def newest_in_store(root: Path) -> NewestInStore | None:
    """The recorded checkpoint; None if there is no record, or a damaged one."""
    try:
        newest = NewestInStore(**read_json(root / DOT_DIR / FILE, RECORD))
    except (OSError, ValueError, TypeError):
        return None
    kinds = (type(newest.step), type(newest.generation), type(newest.created_at))
    return newest if kinds == (int, int, str) else None
