"""Whether the files of a save lie in the folder that it has in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, StoreTransientError
from bt_lightning.path_layout import DELETING, MARKER
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store


def check_files(store: Store, base: str, manifest: Manifest) -> None:
    """Check that each file of a manifest is at `base`, in its length. Called by any worker.

    Raises:
        CheckpointCorruptError: one is not.
        StoreError: the store refused.
    """
    sizes = {info.key: info.size for info in store.list(base)}
    for entry in manifest.files:
        name, size = f"{base}/{entry.path}", sizes.get(f"{base}/{entry.path}")
        if size != entry.size:
            msg = f"{store.name}/{name} has {size} bytes, not {entry.size}"
            raise CheckpointCorruptError(msg)


def are_deleted(store: Store, base: str, manifest: Manifest) -> bool:
    """Whether files of a manifest that was committed at `base` are gone by now.

    Raises:
        StoreTransientError: it is being deleted: what comes of that is to be seen later.
        StoreError: the store refused.
    """
    if read_any(store, f"{base}/{MARKER}") == DELETING:
        msg = f"{store.name}/{base} is being deleted"
        raise StoreTransientError(msg)
    try:
        check_files(store, base, manifest)
    except CheckpointCorruptError:
        return True
    return False
