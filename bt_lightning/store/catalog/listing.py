"""List one job in a store: its checkpoints and its other objects, by one listing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bt_lightning.job_record import RECORD
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import (
    MANIFEST,
    MARKER,
    PROTECTION,
    folders_of,
    generation_of,
    hidden,
    part_name,
    under,
)
from bt_lightning.store.catalog.manifest_cache import ManifestCache
from bt_lightning.store.interface import most_bytes, read_any, too_large
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

_READERS = 16


@dataclass(frozen=True, slots=True)
class JobListing:
    """What one listing of a job's prefix found."""

    committed: dict[str, bytes]
    """Folder -> content of its manifest."""
    unfinished: frozenset[str]
    """Folders with a marker: being written or deleted, or left so by a process that died."""
    protected: frozenset[str] = frozenset()
    """Folders with a protection."""
    others: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of every other object that is not hidden, files of checkpoints included."""
    records: frozenset[str] = frozenset()
    """Folders of nodes with a job record."""
    hidden_objects: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of every hidden object: the trash, and what only this package reads."""

    def job_files(self) -> dict[str, int]:
        """Path -> bytes of the files that belong to no checkpoint."""
        owned = self.committed.keys() | self.unfinished
        return {
            path: size
            for path, size in self.others.items()
            if not any(folder in owned for folder in folders_of(path))
        }


def list_job(store: Store, prefix: str, cache_dir: Path | None = None) -> JobListing:
    """List a job's checkpoints: one listing, and one small read per manifest, in parallel.

    With `cache_dir`, manifests that an earlier call put there are not read again; the result is
    the same. Called in the worker and by the command line.
    """
    found, unfinished, protected, records = {}, set(), set(), set()
    others: dict[str, int] = {}
    hidden_objects: dict[str, int] = {}
    for info in store.list(prefix):
        folder, _, name = info.key.removeprefix(under(prefix, "")).rpartition("/")
        path = f"{folder}/{name}" if folder else name
        if hidden(folder):
            hidden_objects[path] = info.size
        elif name in {MARKER, part_name(MARKER)}:
            unfinished.add(folder)
        elif name == PROTECTION:
            protected.add(folder)
        elif name == MANIFEST:
            found[folder] = info
        elif name == RECORD:
            records.add(folder)
        else:
            (hidden_objects if hidden(name) else others)[path] = info.size
    cache = None if cache_dir is None else ManifestCache(cache_dir, f"{store.name}/{prefix}")
    return JobListing(
        committed=_manifests(store, found, cache),
        unfinished=frozenset(unfinished),
        protected=frozenset(protected),
        others=others,
        records=frozenset(records),
        hidden_objects=hidden_objects,
    )


def _manifests(
    store: Store, found: dict[str, ObjectInfo], cache: ManifestCache | None
) -> dict[str, bytes]:
    """Folder -> content of its manifest; one that was deleted since the listing is left out."""
    known = {folder: cache.get(info) for folder, info in found.items()} if cache else {}
    unread = []
    for folder, info in found.items():
        if info.size > most_bytes(info.key):
            log.warning("this manifest counts as damaged: %s", too_large(store.name, info.key))
            known[folder] = b""
        elif known.get(folder) is None:
            unread.append(folder)
    read = in_parallel(lambda folder: read_any(store, found[folder].key), unread, _READERS)
    for folder, data in zip(unread, read, strict=True):
        known[folder] = data
        if cache is not None and data is not None:
            cache.put(found[folder], data)
    if cache is not None:
        cache.save()
    return {folder: data for folder in found if (data := known[folder]) is not None}


def newest_folder(store: Store, prefix: str, checkpoint_id: str) -> tuple[str, int] | None:
    """Folder and number of the newest generation of one id; None if none is committed.

    Manifests are read, since a name is ambiguous: `model@3` may be the third generation of `model`,
    or the first of `model@3`.
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
