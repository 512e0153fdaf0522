"""Local checkpoint -> store, and the way out of it. The order of every write and delete is here.

Publish: marker, files, manifest (put-if-absent), marker away. Delete: marker, manifest, files,
marker away. So a folder without a manifest is never a checkpoint, and one with a marker and no
manifest is nobody's: a later start of the same job may sweep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    StoreTransientError,
)
from bt_lightning.layout import MANIFEST, MARKER, store_folder, under
from bt_lightning.localdir.committed import check_sizes, is_unchanged
from bt_lightning.store.sources import FileSource

if TYPE_CHECKING:
    from bt_lightning.localdir.committed import LocalCheckpoint
    from bt_lightning.store.port import Store


def publish(store: Store, prefix: str, checkpoint: LocalCheckpoint) -> str:
    """Copy a committed checkpoint into the store and commit it there; return its folder.

    Idempotent. A folder whose manifest is another's is left alone: the next number is taken.

    Raises:
        CheckpointNotFoundError: the local checkpoint was replaced or deleted meanwhile; what was
            sent of it has no manifest, so nobody sees it.
        CheckpointCorruptError: the local checkpoint is damaged.
        StoreError: the store refused.
    """
    manifest = checkpoint.manifest
    data = manifest.to_bytes()
    number = manifest.generation
    while True:
        folder = store_folder(manifest.checkpoint_id, number)
        base = under(prefix, folder)
        there = store.read(f"{base}/{MANIFEST}")
        if there == data:
            store.delete([f"{base}/{MARKER}"])  # of a publisher that died at its last step
            return folder
        if there is None:
            break
        number += 1
    try:
        check_sizes(checkpoint.path, manifest)
        store.put(f"{base}/{MARKER}", b"{}\n")
        for entry in manifest.files:
            with FileSource(checkpoint.path / entry.path, entry) as source:
                store.send(source, f"{base}/{entry.path}")
        _compare_sizes(store, base, checkpoint)
    except (CheckpointCorruptError, OSError) as error:
        if is_unchanged(checkpoint.path, manifest):
            raise
        raise _replaced(checkpoint) from error  # a file of it was gone, or of the next generation
    if not is_unchanged(checkpoint.path, manifest):
        raise _replaced(checkpoint)
    store.put_new(f"{base}/{MANIFEST}", data)
    store.delete([f"{base}/{MARKER}"])
    return folder


def unpublish(store: Store, prefix: str, folder: str) -> None:
    """Delete one checkpoint, or the rest of one, from the store; idempotent."""
    base = under(prefix, folder)
    keys = _own_keys(store, base)
    if not keys:
        return
    store.put(f"{base}/{MARKER}", b"{}\n")
    manifest, marker = f"{base}/{MANIFEST}", f"{base}/{MARKER}"
    store.delete([manifest])
    store.delete([key for key in keys if key not in {manifest, marker}])
    store.delete([marker])


def _own_keys(store: Store, base: str) -> list[str]:
    """Keys of the checkpoint at `base`; of another one below it (`a` and `a/b`), none."""
    keys = [info.key for info in store.list(base)]
    ends = (f"/{MANIFEST}", f"/{MARKER}")
    nested = {
        key.rpartition("/")[0] + "/"
        for key in keys
        if key.endswith(ends) and key.rpartition("/")[0] != base
    }
    return [key for key in keys if not key.startswith(tuple(nested))]


def _compare_sizes(store: Store, base: str, checkpoint: LocalCheckpoint) -> None:
    sizes = {info.key: info.size for info in store.list(base)}
    for entry in checkpoint.manifest.files:
        size = sizes.get(f"{base}/{entry.path}")
        if size != entry.size:
            msg = (
                f"{store.name}/{base}/{entry.path} has {size} bytes after upload, not {entry.size}"
            )
            raise StoreTransientError(msg)


def _replaced(checkpoint: LocalCheckpoint) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{checkpoint.path} was replaced while it was being published")
