"""List one job in a store: its checkpoints and its other objects, by one listing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from bt_lightning.job_record import RECORD
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import (
    MANIFEST,
    MANIFESTS_INDEX,
    MARKER,
    PROTECTION,
    folders_of,
    generation_of,
    hidden,
    part_name,
    under,
)
from bt_lightning.store.interface import most_bytes, read_any, too_large
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Collection

    from bt_lightning.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

_READERS: Final = 16
_MARKERS: Final = frozenset([MARKER, part_name(MARKER)])


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixListing:
    """What one listing of a prefix found; no manifest is read yet."""

    manifests: dict[str, ObjectInfo]
    """Folder -> its manifest."""
    unfinished: frozenset[str] = frozenset()
    """Folders with a marker: being written or deleted, or left so by a process that died."""
    protected: frozenset[str] = frozenset()
    """Folders with a protection."""
    others: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of every other object that is not hidden, files of checkpoints included."""
    records: frozenset[str] = frozenset()
    """Folders of nodes with a job record."""
    indexes: frozenset[str] = frozenset()
    """Folders of nodes with an index of manifests."""
    hidden_objects: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of every hidden object: the trash, and what only this package reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobListing(PrefixListing):
    """What one listing of a job's prefix found, and the manifests."""

    committed: dict[str, bytes]
    """Folder -> content of its manifest."""

    def job_files(self) -> dict[str, int]:
        """Path -> bytes of the files that belong to no checkpoint."""
        owned = self.committed.keys() | self.unfinished
        return {
            path: size
            for path, size in self.others.items()
            if not any(folder in owned for folder in folders_of(path))
        }


def list_prefix(store: Store, prefix: str) -> PrefixListing:
    """List everything under a prefix: one listing."""
    manifests: dict[str, ObjectInfo] = {}
    unfinished, protected, records, indexes = set(), set(), set(), set()
    others: dict[str, int] = {}
    hidden_objects: dict[str, int] = {}
    cut = len(under(prefix, ""))
    for info in store.list(prefix):
        path = info.key[cut:]
        folder, _, name = path.rpartition("/")
        if hidden(folder):
            hidden_objects[path] = info.size
        elif name == MANIFEST:
            manifests[folder] = info
        elif name in _MARKERS:
            unfinished.add(folder)
        elif name == PROTECTION:
            protected.add(folder)
        elif name == RECORD:
            records.add(folder)
        elif hidden(name):
            hidden_objects[path] = info.size
            if name == MANIFESTS_INDEX:
                indexes.add(folder)
        else:
            others[path] = info.size
    return PrefixListing(
        manifests=manifests,
        unfinished=frozenset(unfinished),
        protected=frozenset(protected),
        others=others,
        records=frozenset(records),
        indexes=frozenset(indexes),
        hidden_objects=hidden_objects,
    )


def list_job(store: Store, prefix: str) -> JobListing:
    """List a job's checkpoints: one listing, and one small read per manifest, in parallel.

    Called in the worker and by the command line.
    """
    listing = list_prefix(store, prefix)
    read = read_manifests(store, listing, listing.manifests)
    committed = {folder: data for folder, data in read.items() if data is not None}
    found = {each.name: getattr(listing, each.name) for each in fields(listing)}
    return JobListing(**found, committed=committed)


def read_manifests(
    store: Store, listing: PrefixListing, folders: Collection[str]
) -> dict[str, bytes | None]:
    """Folder -> content of its manifest; None for one that was deleted since the listing."""
    found: dict[str, bytes | None] = {}
    small = []
    for folder in folders:
        info = listing.manifests[folder]
        if info.size > most_bytes(info.key):
            log.warning("this manifest counts as damaged: %s", too_large(store.name, info.key))
            found[folder] = b""
        else:
            small.append(folder)
    read = in_parallel(
        lambda folder: read_any(store, listing.manifests[folder].key), small, _READERS
    )
    found.update(zip(small, read, strict=True))
    return found


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
