"""What is committed in a store, and how it comes back to the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.layout import MANIFEST, MARKER, generation_of, part_name, under
from bt_lightning.localdir.committed import describe_damage
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.durable import publish_directory, temporary
from bt_lightning.localdir.files import sync_directory
from bt_lightning.manifest import Manifest
from bt_lightning.store.download import download

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.store.port import Store


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a job's part of a store."""

    committed: dict[str, bytes]
    """Folder -> bytes of its manifest."""
    unfinished: frozenset[str]
    """Folders with a marker: being written or deleted, or left so by a process that died."""


def look(store: Store, prefix: str) -> Listing:
    """List a job's checkpoints: one listing, and one small read for each manifest."""
    committed: dict[str, bytes] = {}
    unfinished = set()
    for info in store.list(prefix):
        folder, _, name = info.key.removeprefix(under(prefix, "")).rpartition("/")
        if name in {MARKER, part_name(MARKER)}:
            unfinished.add(folder)
        elif name == MANIFEST:
            data = store.read(info.key)
            if data is not None:
                committed[folder] = data
    return Listing(committed, frozenset(unfinished))


def fetch(store: Store, prefix: str, folder: str, root: Path, final: Path) -> Manifest:
    """Bring one checkpoint of the store to the directory `final` under `root`, verified, whole.

    Raises:
        CheckpointNotFoundError: the folder holds no committed checkpoint.
        CheckpointCorruptError: what arrived is not what the manifest says; nothing is kept.
        StoreError: the store refused.
    """
    base = under(prefix, folder)
    data = store.read(f"{base}/{MANIFEST}")
    if data is None:
        msg = f"no committed checkpoint at {store.name}/{base}"
        raise CheckpointNotFoundError(msg)
    manifest = Manifest.from_bytes(data, f"{store.name}/{base}")
    with temporary(root) as built:
        folders = {built}
        for entry in manifest.files:
            target = built / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
            download(store, f"{base}/{entry.path}", target)
            found = digest_file(target, entry.path)
            if found != entry:
                raise CheckpointCorruptError(describe_damage(f"{store.name}/{base}", entry, found))
            _sync_file(target)
        (built / MANIFEST).write_bytes(data)
        _sync_file(built / MANIFEST)
        for path in folders:
            sync_directory(path)
        publish_directory(built, final, root)
    return manifest


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_folder(store: Store, prefix: str, checkpoint_id: str) -> tuple[str, int] | None:
    """Folder and its number of the newest checkpoint of one id; None if none is committed.

    The name alone does not tell: `model@3` may be the third of `model`, or the first of `model@3`.
    """
    named = []
    for info in store.list(prefix):
        folder, _, name = info.key.removeprefix(under(prefix, "")).rpartition("/")
        if name == MANIFEST and (number := generation_of(folder, checkpoint_id)) is not None:
            named.append((number, folder, info.key))
    for number, folder, key in sorted(named, reverse=True):
        data = store.read(key)
        if data is not None and Manifest.from_bytes(data, key).checkpoint_id == checkpoint_id:
            return folder, number
    return None
