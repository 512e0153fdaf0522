"""List checkpoints for people: the manifests are taken from the cache and from indexes, then read.

Which manifests there are, and of which version, is what the store's listing says: a checkpoint that
was deleted, or replaced, is not shown as it was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.late_files import is_distant
from bt_lightning.manifest import Manifest
from bt_lightning.manifest_summary import listed_manifest, summary_of
from bt_lightning.path_layout import committed_at
from bt_lightning.store.catalog.listing import list_prefix, read_manifests
from bt_lightning.store.catalog.manifest_cache import ManifestCache
from bt_lightning.store.catalog.manifest_indexes import indexed_summaries
from bt_lightning.store.catalog.projects import NodeFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.store.catalog.listing import PrefixListing
    from bt_lightning.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedManifests:
    """The checkpoints of one listing of a prefix."""

    listing: PrefixListing
    places: dict[str, NodeFolder]
    """Folder -> what it is in the store; other folders, of no node of a job, are no checkpoints."""
    manifests: dict[str, Manifest]
    """Folder -> its manifest; its files may be read when they are asked for (`LateFiles`)."""
    refused: list[str]
    """Why folders with a manifest are left out."""


class _NoCache:
    """What `ManifestCache` is where there is no folder for it."""

    def get(self, info: ObjectInfo, read: Callable[[], Manifest]) -> Manifest | None:  # noqa: ARG002
        """Nothing is known."""
        return None

    def put(self, info: ObjectInfo, summary: dict[str, Any] | None, data: bytes = b"") -> None:
        """Nothing is kept."""

    def save(self) -> None:
        """Nothing is written."""


def list_manifests(
    store: Store, prefix: str, cache_dir: Path | None, *, whole: bool = False
) -> ListedManifests:
    """List the checkpoints under a prefix; manifests that `cache_dir` has are not read.

    With `whole`, the entries of all files are known when this returns, or in the cache: no use of
    them asks the store. Called by the command line.

    Raises:
        StoreError: the store refused.
    """
    cache = _NoCache() if cache_dir is None else ManifestCache(cache_dir, f"{store.name}/{prefix}")
    found = _Manifests(store, prefix, list_prefix(store, prefix), cache)
    found.take_cached(whole=whole)
    if not whole:
        found.take_indexed()
    found.read()
    cache.save()
    manifests = {folder: found.known[folder] for folder in found.places if folder in found.known}
    return ListedManifests(found.listing, found.places, manifests, found.refused)


class _Manifests:
    """The manifests of one listing, as they become known."""

    def __init__(
        self, store: Store, prefix: str, listing: PrefixListing, cache: ManifestCache | _NoCache
    ) -> None:
        self._store, self._prefix, self._cache = store, prefix, cache
        self.listing = listing
        self.places = {
            folder: NodeFolder(*parts)
            for folder, info in listing.manifests.items()
            if (parts := committed_at(info.key)) is not None
        }
        self.known: dict[str, Manifest] = {}
        self.refused: list[str] = []

    def take_cached(self, *, whole: bool) -> None:
        for folder in self.places:
            info = self.listing.manifests[folder]
            found = self._cache.get(info, _late(self._store, info.key))
            if found is not None and not (whole and is_distant(found.files)):
                self.known[folder] = found

    def take_indexed(self) -> None:
        infos, indexes = self.listing.manifests, self.listing.indexes
        found = indexed_summaries(self._store, self._prefix, indexes, infos, self._unread())
        for folder, summary in found.items():
            info = infos[folder]
            try:
                self.known[folder] = listed_manifest(
                    summary, _late(self._store, info.key), distant=True
                )
            except ValueError as error:
                log.warning("what an index says of %s is not used: %s", info.key, error)
            else:
                self._cache.put(info, summary)

    def read(self) -> None:
        infos = self.listing.manifests
        for folder, data in read_manifests(self._store, self.listing, self._unread()).items():
            if data is None:
                del infos[folder], self.places[folder]  # deleted since the listing
                continue
            where = f"{self._store.name}/{self._prefix}/{folder}"
            try:
                self.known[folder] = found = Manifest.from_bytes(data, where)
            except CheckpointCorruptError as error:
                self.refused.append(str(error))
            else:
                self._cache.put(infos[folder], summary_of(found), data)

    def _unread(self) -> list[str]:
        return [folder for folder in self.places if folder not in self.known]


def _late(store: Store, key: str) -> Callable[[], Manifest]:
    """A function that reads the manifest at `key`."""

    def read() -> Manifest:
        data = store.read(key)
        if data is None:
            msg = f"{store.name}/{key} was deleted since it was listed: list again"
            raise CheckpointNotFoundError(msg)
        return Manifest.from_bytes(data, f"{store.name}/{key}")

    return read
