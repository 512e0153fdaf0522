"""Send the index of the manifests that a store has of a node of a job; the publisher's thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bt_lightning.errors import StoreError
from bt_lightning.manifest_index import index_bytes
from bt_lightning.path_layout import manifests_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease

log = logging.getLogger(__name__)


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

        A store without MD5 in its listings, as a folder, has none: nobody could use it. Lists work
        without it, so one that the store refuses is no failure of the run; the next is tried.

        Raises:
            StoreError: the lease is lost, or cannot be confirmed.
        """
        digests = {manifest.digest for manifest in stored.values()}
        if not store.distant or digests <= self._sent:
            return
        lease.confirm()
        self._sent = digests
        key = manifests_index(self._prefix)
        try:
            store.put(key, index_bytes(stored))
        except StoreError as error:
            log.warning("%s/%s was not sent: %s; lists read each manifest", store.name, key, error)
