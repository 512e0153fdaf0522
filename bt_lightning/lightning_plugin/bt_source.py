"""What `bt://` paths mean to a CheckpointIO: one store, and one answer for all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.lightning_plugin.checks import portable
from bt_lightning.store.place import StorePlace
from bt_lightning.store.tree import find_checkpoint, open_bt_store

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True, slots=True)
class Pin:
    """The one checkpoint that a `bt://` path means in a run."""

    base: str
    """Key prefix of its files in the store."""
    digest: str
    """Of its manifest."""


@dataclass
class BtSource:
    """The store that `bt://` paths are looked up in, and what they were found to mean.

    Holds plain values only: it travels to spawned ranks.
    """

    store: str | None = field(default=None, repr=False)
    """Its URL; None for `$BT_STORE_URL`."""
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    pins: dict[str, Pin] = field(default_factory=dict)
    """What the ranks agreed on, until it is read."""

    def look(self, path: str) -> Pin:
        """Find what `path` means now.

        Raises:
            InvalidSettingError: it is no `bt://` URL, or there is no store.
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointCorruptError: its manifest is damaged.
            StoreError: the store refused.
        """
        found = find_checkpoint(open_bt_store(self.store, self.storage_options), path)
        return Pin(found.place.base, found.manifest.digest)

    def agree(self, trainer: Trainer, path: str) -> Pin:
        """Every rank: the next `place` of `path` is what rank 0 finds now, on all of them.

        Raises on every rank what `look` raised on rank 0.
        """
        found: Pin | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self.look(path)
            except Exception as error:  # noqa: BLE001 - every rank waits to hear of it
                found = portable(error)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        assert found is not None
        self.pins[path] = found
        return found

    def place(self, path: str) -> StorePlace:
        """Where the checkpoint at `path` is read from.

        Raises:
            CheckpointNotFoundError: there is none, or it was replaced since the ranks agreed.
            InvalidSettingError, CheckpointCorruptError, StoreError: as `look`.
        """
        pin = self.pins.pop(path, None) or self.look(path)
        place = StorePlace(open_bt_store(self.store, self.storage_options), "", pin.base)
        if place.manifest.digest != pin.digest:
            msg = f"{path} was replaced in the store while it was read: start again"
            raise CheckpointNotFoundError(msg)
        return place
