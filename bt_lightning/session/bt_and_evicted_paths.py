"""What paths mean that lead to a store: one store, and one answer for all ranks.

Those are `bt://` paths, and paths of the checkpoint directory whose copies made room for others.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.path_layout import check_checkpoint_id, under
from bt_lightning.settings import Job, Settings
from bt_lightning.store.catalog.bt_url_tree import find_checkpoint, open_bt_store
from bt_lightning.store.catalog.listing import newest_folder
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.uri import is_bt


@dataclass(frozen=True, slots=True)
class Pin:
    """The one checkpoint that a `bt://` path means in a run."""

    base: str
    """Key prefix of its files in the store."""
    digest: str
    """Of its manifest."""


@dataclass
class StorePaths:
    """The store that `bt://` paths are looked up in, and what they were found to mean.

    Holds plain values only: it travels to spawned ranks.
    """

    store: str | None = field(default=None, repr=False)
    """Its URL; None for `$BT_STORE_URL`."""
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    pins: dict[str, Pin] = field(default_factory=dict)
    """What the ranks agreed on, until it is read."""
    root: Path | None = None
    """A checkpoint directory, of whose checkpoints the store may have the only copy."""
    prefix: str = ""
    """Key prefix of those in the store."""

    def look(self, path: str) -> Pin:
        """Find what `path` means now.

        Raises:
            InvalidSettingError: it is no `bt://` URL, or there is no store.
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointCorruptError: its manifest is damaged.
            StoreError: the store refused.
        """
        if not is_bt(path):
            return self._look_away(path)
        found = find_checkpoint(open_bt_store(self.store, self.storage_options), path)
        return Pin(found.location.base, found.manifest.digest)

    def _look_away(self, path: str) -> Pin:
        """What the store has of the checkpoint that had, or would have, that path on the disk."""
        checkpoint_id = self.id_of(path)
        if checkpoint_id is None or self.store is None:
            msg = f"Checkpoint file not found: {path}"
            raise CheckpointNotFoundError(msg)
        store = open_bt_store(self.store, self.storage_options)
        found = newest_folder(store, self.prefix, checkpoint_id)
        if found is None:
            msg = f"Checkpoint file not found: {path}, nor in {store.name}/{self.prefix}"
            raise CheckpointNotFoundError(msg)
        place = StoreReader(store, self.prefix, found[0])
        return Pin(under(self.prefix, found[0]), place.manifest.digest)

    def id_of(self, path: str) -> str | None:
        """The id that a local path means in our directory; None if it leads elsewhere."""
        if self.root is None or "://" in path:
            return None
        place = Path(path).absolute()
        place = place.resolve() if place.is_symlink() else place.parent.resolve() / place.name
        try:
            return check_checkpoint_id(place.relative_to(self.root).as_posix())
        except (ValueError, InvalidSettingError):
            return None

    def pin(self, path: str, folder: str, digest: str) -> None:
        """The next `place` of `path` is this folder of the store."""
        self.pins[path] = Pin(under(self.prefix, folder), digest)

    def away(self, path: str) -> Pin | None:
        """What the store has of a path that is not on this disk; None if it is, or is nowhere.

        Raises as `look`, but for what is nowhere: who loads it says so.
        """
        with contextlib.suppress(CheckpointNotFoundError):
            return None if Path(path).exists() else self.look(path)
        return None

    def reader(self, path: str) -> StoreReader:
        """Where the checkpoint at `path` is read from.

        Raises:
            CheckpointNotFoundError: there is none, or it was replaced since the ranks agreed.
            InvalidSettingError, CheckpointCorruptError, StoreError: as `look`.
        """
        pin = self.pins.pop(path, None) or self.look(path)
        place = StoreReader(open_bt_store(self.store, self.storage_options), "", pin.base)
        if place.manifest.digest != pin.digest:
            msg = f"{path} was replaced in the store while it was read: start again"
            raise CheckpointNotFoundError(msg)
        return place


_OPEN: dict[Path, StorePaths] = {}
"""By checkpoint directory: what a Trainer of this process was given."""


def remember(source: StorePaths) -> None:
    """Let `source_of` find this source, for those who load without a Trainer."""
    if source.root is not None:
        _OPEN[source.root] = source


def source_of(path: str) -> StorePaths | None:
    """Whose directory a local path that is not there lies in; None if in none that has a store.

    Of a Trainer of this process, else of the environment: `BT_CHECKPOINT_DIR`, `BT_STORE_URL`.
    """
    if "://" in path or Path(path).exists():
        return None
    for source in (*_OPEN.values(), _of_environment()):
        if source is not None and source.store is not None and source.id_of(path) is not None:
            return source
    return None


def _of_environment() -> StorePaths | None:
    settings = Settings.from_environ(os.environ)
    if settings.checkpoint_dir is None or settings.store_url is None:
        return None
    root = Path(settings.checkpoint_dir).expanduser().resolve()
    return StorePaths(settings.store_url, root=root, prefix=Job.named(settings, str(root)).prefix)
