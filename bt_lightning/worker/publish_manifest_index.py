"""Send the index of the manifests that a store has of a node of a job; the publisher's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.manifest_index import index_bytes
from bt_lightning.path_layout import manifests_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease


class ManifestIndexPublisher:
    """Puts the index when checkpoints have come that the last one lacks."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._sent: set[str] = set()

    def forget(self) -> None:
        """Trust nothing known of the store."""
        self._sent.clear()

    def send(self, store: Store, lease: Lease, stored: Mapping[str, Manifest]) -> None:
        """Put the index, by whoever holds the lease; called when no checkpoint waits.

        A store without MD5 in its listings, as a folder, has none: nobody could use it.

        Raises:
            StoreError: the store refused.
        """
        digests = {manifest.digest for manifest in stored.values()}
        if not store.distant or digests <= self._sent:
            return
        lease.confirm()
        store.put(manifests_index(self._prefix), index_bytes(stored))
        self._sent = digests
