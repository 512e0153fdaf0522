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
from bt_lightning.store.port import Reuse
from bt_lightning.store.sources import FileSource, same_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.localdir.committed import LocalCheckpoint
    from bt_lightning.manifest import FileEntry, Manifest
    from bt_lightning.store.port import Store
    from bt_lightning.store.sources import DescribedSource

    Base = tuple[str, Manifest] | None
    """Folder and manifest of a checkpoint of the store."""


def publish(
    store: Store,
    prefix: str,
    checkpoint: LocalCheckpoint,
    *,
    base: Base = None,
    sent: Mapping[str, str] | None = None,
) -> str:
    """Copy a committed checkpoint into the store and commit it there; return its folder.

    Idempotent. A folder whose manifest is another's is left alone: the next number is taken. `base`
    is the folder and manifest of a checkpoint there: what did not change since is copied inside the
    store. `sent` maps keys that were sent already to the digests of their bytes.

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
        place = under(prefix, folder)
        there = store.read(f"{place}/{MANIFEST}")
        if there == data:
            store.delete([f"{place}/{MARKER}"])  # of a publisher that died at its last step
            return folder
        if there is None:
            break
        number += 1
    try:
        check_sizes(checkpoint.path, manifest)
        store.put(f"{place}/{MARKER}", b"{}\n")
        for entry in manifest.files:
            key = f"{place}/{entry.path}"
            if (sent or {}).get(key) == entry.xxh3_128:
                continue
            with FileSource(checkpoint.path / entry.path, entry) as source:
                store.send(source, key, _reuse(prefix, base, entry))
        _compare_sizes(store, place, checkpoint)
    except (CheckpointCorruptError, OSError) as error:
        if is_unchanged(checkpoint.path, manifest):
            raise
        raise _replaced(checkpoint) from error  # a file of it was gone, or of the next generation
    if not is_unchanged(checkpoint.path, manifest):
        raise _replaced(checkpoint)
    store.put_new(f"{place}/{MANIFEST}", data)
    store.delete([f"{place}/{MARKER}"])
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


def send_ahead(
    store: Store, prefix: str, key: str, source: DescribedSource, base: Base
) -> dict[str, str]:
    """Send a file of a checkpoint that is not committed yet; return key -> digest if it is there.

    `key` is `<folder>/<path>` below `prefix`. Nobody sees it before `publish`, which leaves out
    what this sent; if it never comes to that, `unpublish` deletes it. Nothing is sent to a folder
    that holds a checkpoint.
    """
    target = under(prefix, key)
    place = target.removesuffix(f"/{source.entry.path}")
    if store.read(f"{place}/{MANIFEST}") is not None:
        return {}
    store.put(f"{place}/{MARKER}", b"{}\n")
    store.send(source, target, _reuse(prefix, base, source.entry))
    return {target: source.entry.xxh3_128}


def _reuse(prefix: str, base: Base, entry: FileEntry) -> Reuse | None:
    """What of a file the checkpoint `base` has as well."""
    older = base[1].entry(entry.path) if base is not None else None
    ranges = same_ranges(entry, older) if older is not None else ()
    return Reuse(f"{under(prefix, base[0])}/{entry.path}", ranges) if base and ranges else None


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
