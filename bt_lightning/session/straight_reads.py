"""Which checkpoints of the store a start reads there, so that none comes to the disk.

Ranks with disks of their own read each its parts. A training on one rank restores by the read that
verifies. If it fails and starts again before it has saved anything, that read would cross the
network again and again: the second start brings the checkpoint to the disk.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.session.bt_and_evicted_paths import StorePaths

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import Manifest
    from bt_lightning.restore.find_checkpoint import Stored
    from bt_lightning.restore.first_read import FirstRead
    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_NOTE: Final = "read_straight.json"


@dataclass(frozen=True)
class StraightReads:
    """Those of one start, on rank 0; `first_read` is the read that verifies."""

    config: SessionConfig
    first_read: FirstRead
    world_size: int

    def has(self, manifest: Manifest) -> bool:
        """Whether such a checkpoint is read in the store."""
        parts = self.config.parts
        if manifest.has_parts:
            return parts is not None and parts.meet == "store"
        alone = self.world_size == 1 and self.first_read.takes(manifest)
        return alone and self._noted() != manifest.digest

    def reader(self, path: str, stored: Stored) -> CheckpointReader:
        """As the ranks read what would lie at `path`; raises as `StorePaths.reader`."""
        config = self.config
        options, prefix = dict(config.storage_options), config.job.prefix
        source = StorePaths(config.store_url, options, root=config.root, prefix=prefix)
        source.pin(path, stored.folder, stored.manifest.digest)
        return source.reader(path)

    def note(self, manifest: Manifest) -> None:
        """Let the next start know that this one read it there."""
        with contextlib.suppress(OSError):  # then that one reads it there as well
            text = json.dumps({"manifest": manifest.digest})
            replace_small(self._note, text.encode("ascii"), durable=False)

    @property
    def _note(self) -> Path:
        return self.config.root / DOT_DIR / _NOTE

    def _noted(self) -> object:
        try:
            found = read_json(self._note, RECORD)
        except (OSError, CheckpointCorruptError):
            return None
        return found.get("manifest") if isinstance(found, dict) else None
