"""Resolves paths whose checkpoints are read from the store, the same on all ranks.

These are `bt://` URLs, and paths in the checkpoint directory whose local copies were evicted.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.path_layout import check_checkpoint_id, under
from bt_lightning.settings import Settings
from bt_lightning.store.catalog.bt_url_tree import find_checkpoint, open_bt_store
from bt_lightning.store.catalog.listing import newest_folder
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.copy_first_reader import with_kept_parts
from bt_lightning.store.transfer.held_memory import with_held_memory
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


@dataclass(frozen=True, slots=True)
class Pin:
    """The checkpoint that a path was resolved to."""

    base: str
    """Key prefix of its files in the store."""
    digest: str
    """Digest of its manifest."""


@dataclass
class StorePaths:
    """The store in which paths are looked up, and the checkpoints that the ranks agreed on.

    Has plain values only, since it is pickled for spawned ranks.
    """

    store: str | None = field(default=None, repr=False)
    """URL of the store; None for `$BT_STORE_URL`."""
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    pins: dict[str, Pin] = field(default_factory=dict)
    """Path -> checkpoint that the ranks agreed on; removed when it is read."""
    root: Path | None = None
    """A checkpoint directory whose checkpoints may be in the store only."""
    prefix: str = ""
    """Key prefix of the checkpoints of `root` in the store."""

    def find(self, path: str) -> Pin:
        """Find the checkpoint that `path` means at this moment.

        Raises:
            InvalidSettingError: it is no valid `bt://` URL, or there is no store.
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointCorruptError: its manifest is damaged.
            StoreError: the store failed.
        """
        if not is_bt(path):
            return self._find_evicted(path)
        found = find_checkpoint(open_bt_store(self.store, self.storage_options), path)
        return Pin(found.location.base, found.manifest.digest)

    def _find_evicted(self, path: str) -> Pin:
        """The stored checkpoint whose local copy has, or had, this path."""
        checkpoint_id = self.checkpoint_id_of(path)
        if checkpoint_id is None or self.store is None:
            msg = f"Checkpoint file not found: {path}"
            raise CheckpointNotFoundError(msg)
        store = open_bt_store(self.store, self.storage_options)
        found = newest_folder(store, self.prefix, checkpoint_id)
        if found is None:
            msg = f"Checkpoint file not found: {path}, nor in {store.name}/{self.prefix}"
            raise CheckpointNotFoundError(msg)
        reader = StoreReader(store, self.prefix, found[0])
        return Pin(under(self.prefix, found[0]), reader.manifest.digest)

    def checkpoint_id_of(self, path: str) -> str | None:
        """The checkpoint id of a local path in `root`; None for a path elsewhere."""
        if self.root is None or "://" in path:
            return None
        local = Path(path).absolute()
        local = local.resolve() if local.is_symlink() else local.parent.resolve() / local.name
        try:
            return check_checkpoint_id(local.relative_to(self.root).as_posix())
        except (ValueError, InvalidSettingError):
            return None

    def pin(self, path: str, folder: str, digest: str) -> None:
        """Let the next `reader` of `path` read this folder of the store."""
        self.pins[path] = Pin(under(self.prefix, folder), digest)

    def find_if_not_local(self, path: str) -> Pin | None:
        """The stored checkpoint of a path that is not on this disk; None if it is, or if none is.

        Raises as `find`, except `CheckpointNotFoundError`: the load raises that.
        """
        with contextlib.suppress(CheckpointNotFoundError):
            return None if Path(path).exists() else self.find(path)
        return None

    def reader(self, path: str) -> CheckpointReader:
        """A reader of the stored checkpoint at `path`; what this node has of it is read here.

        Raises:
            CheckpointNotFoundError: there is none, or it was replaced since the ranks agreed.
            InvalidSettingError, CheckpointCorruptError, StoreError: as `find`.
        """
        pin = self.pins.pop(path, None) or self.find(path)
        reader = StoreReader(open_bt_store(self.store, self.storage_options), "", pin.base)
        if reader.manifest.digest != pin.digest:
            msg = f"{path} was replaced in the store while it was read: start again"
            raise CheckpointNotFoundError(msg)
        return with_held_memory(with_kept_parts(reader, self.root), self.root)


_REGISTERED: dict[Path, StorePaths] = {}
"""Checkpoint directory -> the store of a Trainer of this process that uses it."""


def register_store_paths(source: StorePaths) -> None:
    """Let `store_paths_for` find this one, for loads without a Trainer."""
    if source.root is not None:
        _REGISTERED[source.root] = source


def store_paths_for(path: str) -> StorePaths | None:
    """The store of the checkpoint directory that has a missing local path; None if there is none.

    Considers the Trainers of this process, then `BT_CHECKPOINT_DIR` and `BT_STORE_URL`.
    """
    if "://" in path or Path(path).exists():
        return None
    for source in (*_REGISTERED.values(), _from_environment()):
        if (
            source is not None
            and source.store is not None
            and source.checkpoint_id_of(path) is not None
        ):
            return source
    return None


def _from_environment() -> StorePaths | None:
    settings = Settings.from_environ(os.environ)
    if settings.checkpoint_dir is None or settings.store_url is None:
        return None
    root = Path(settings.checkpoint_dir).expanduser().resolve()
    return StorePaths(settings.store_url, root=root, prefix=job_of(settings, root).prefix)
