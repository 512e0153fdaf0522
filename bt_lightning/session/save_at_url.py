"""Saves and removes checkpoints at URLs of any fsspec filesystem."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.session.checkpoint_paths import split_checkpoint_url
from bt_lightning.store.backends.fsspec_listings import forget_listings
from bt_lightning.store.catalog.listing import newest_folder
from bt_lightning.store.open_store import open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.store.transfer.publish import publish
from bt_lightning.store.transfer.unpublish import unpublish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.manifest import Manifest


def save_at_url(
    url: str,
    storage_options: Mapping[str, object] | None,
    write: Callable[[Path, Path, int], Manifest],
) -> None:
    """Publish a checkpoint at `url`, replacing the one there.

    `write(final, root, after)` commits it to a temporary directory on this disk, with a generation
    greater than `after`. Raises `StoreError`, and what `write` raises.
    """
    parent, name = split_checkpoint_url(url)
    store = RetryingStore(open_store(parent, storage_options))
    previous = newest_folder(store, "", check_checkpoint_id(name))
    after = previous[1] if previous else 0
    try:
        with tempfile.TemporaryDirectory(prefix="bt_lightning-") as folder:
            root = Path(folder)
            manifest = write(root / name, root, after)
            publish(store, "", LocalCheckpoint(root / name, manifest))
        if previous:
            unpublish(store, "", previous[0])
    finally:
        forget_listings(url)


def remove_at_url(url: str) -> None:
    """Delete the checkpoint at `url` (its manifest first), or a stock file; keep a protected one.

    Raises:
        StoreError: the store failed.
    """
    parent, name = split_checkpoint_url(url)
    store = RetryingStore(open_store(parent))
    try:
        while (found := newest_folder(store, "", name)) is not None:
            if not unpublish(store, "", found[0]):
                return
        store.delete([name])
    finally:
        forget_listings(url)
