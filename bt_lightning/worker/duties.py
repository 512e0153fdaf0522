"""What the worker does, one unit at a time; what is left to do is read off the disk and the store.

Nothing here is remembered that a restart would need: the outbox is what is committed on the disk
and not in the store, and removal requests lie on the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
)
from bt_lightning.layout import MARKER, part_name, store_folder, under
from bt_lightning.localdir.committed import LocalCheckpoint, list_committed
from bt_lightning.localdir.durable import delete_directory, empty_trash
from bt_lightning.localdir.requests import forget_removal, requested_removals
from bt_lightning.manifest import Manifest
from bt_lightning.retention import Committed, removable
from bt_lightning.store.catalog import look
from bt_lightning.store.publish import publish, send_ahead, unpublish

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from bt_lightning.store.port import Store
    from bt_lightning.worker.ahead import Offer


class Duties:
    """Publishing and deleting for one checkpoint directory and one part of a store."""

    def __init__(
        self, root: Path, store: Store | None, prefix: str, pinned: Collection[str]
    ) -> None:
        self._root = root
        self._store = store
        self._prefix = prefix
        self._pinned = pinned
        self._stored: dict[str, Manifest] | None = None
        self._damaged: set[str] = set()
        self._ahead: dict[str, tuple[Offer, dict[str, str]]] = {}
        self.complaints: list[str] = []
        """What was found damaged since the reader last emptied it."""

    def forget(self) -> None:
        """Trust nothing known of the store; look again before the next unit."""
        self._stored = None
        for _, sent in self._ahead.values():
            sent.clear()  # that look sweeps folders without a manifest

    def send_ahead(self, offer: Offer) -> None:
        """Send what is lent of a checkpoint that is being committed.

        Raises:
            StoreError: the store refused; what was sent is sent again after the commit.
        """
        if self._store is None or not self._store.distant:
            return
        stored = self._known_store(self._store)
        folder = store_folder(offer.checkpoint_id, offer.generation)
        if folder in stored:
            return  # the publication will take another
        sent = self._ahead.setdefault(folder, (offer, {}))[1]
        base = self._base(stored)
        while (lent := offer.take()) is not None:
            path, source = lent
            try:
                sent |= send_ahead(self._store, self._prefix, f"{folder}/{path}", source, base)
            except CheckpointNotFoundError:
                return  # the commit failed
            finally:
                source.close()

    def outbox(self) -> list[LocalCheckpoint]:
        """Committed here and not in the store, newest first; what is about to go is left out."""
        if self._store is None:
            return []
        local, _ = list_committed(self._root)
        requested = requested_removals(self._root)
        stored = list((self._stored or {}).values())  # another thread may be adding to it
        published = {manifest.digest for manifest in stored}
        wanted = [found for found in local if found.manifest.digest not in requested]
        unsent = [found for found in (wanted or local) if found.manifest.digest not in published]
        return [found for found in unsent if found.manifest.digest not in self._damaged]

    def publish_next(self) -> LocalCheckpoint | None:
        """Publish the newest checkpoint of the outbox; None if it is empty.

        Raises:
            StoreError: the store refused; what it holds is looked up again before the next try.
        """
        if self._store is None:
            return None
        stored = self._known_store(self._store)
        for found in self.outbox():
            try:
                folder = publish(
                    self._store,
                    self._prefix,
                    found,
                    base=self._base(stored),
                    sent=self._sent(),
                )
            except (CheckpointNotFoundError, CheckpointExistsError):
                continue  # replaced here, or taken there, meanwhile: the next look sees which
            except CheckpointCorruptError as error:
                self._damaged.add(found.manifest.digest)  # must not stand before the whole ones
                self.complaints.append(str(error))
                continue
            stored[folder] = found.manifest
            return found
        return None

    def delete_ahead(self) -> None:
        """Delete what was sent ahead of checkpoints that did not come, or are not wanted."""
        ended = [folder for folder, (offer, _) in self._ahead.items() if offer.over]
        if self._store is None or not ended:
            return
        stored = self._known_store(self._store)
        waiting = {
            store_folder(found.manifest.checkpoint_id, found.manifest.generation)
            for found in self.outbox()
        }
        for folder in ended:
            if folder not in waiting:
                if folder not in stored:
                    unpublish(self._store, self._prefix, folder)
                del self._ahead[folder]

    def _sent(self) -> dict[str, str]:
        return {key: digest for _, sent in self._ahead.values() for key, digest in sent.items()}

    @staticmethod
    def _base(stored: dict[str, Manifest]) -> tuple[str, Manifest] | None:
        """The newest of the store: most of what did not change since is in it."""
        return max(stored.items(), key=lambda item: item[1].order, default=None)

    def delete_local(self) -> None:
        """Delete from the disk whatever was asked to go and may; needs no store."""
        empty_trash(self._root)
        requested = requested_removals(self._root)
        if not requested:
            return
        local = {found.path.as_posix(): found for found in list_committed(self._root)[0]}
        entries = [_committed(place, found.manifest) for place, found in local.items()]
        for entry in removable(entries, requested, self._pinned):
            if entry.digest in requested:  # an older generation elsewhere on disk is the user's
                delete_directory(local[entry.place].path, self._root)

    def delete_stored(self) -> None:
        """Delete from the store whatever may go there, and drop the requests that are done."""
        requested = requested_removals(self._root)
        left = {found.manifest.digest for found in list_committed(self._root)[0]}
        if self._store is not None:
            stored = self._known_store(self._store)
            entries = [_committed(folder, manifest) for folder, manifest in stored.items()]
            for entry in removable(entries, requested, self._pinned):
                unpublish(self._store, self._prefix, entry.place)
                del stored[entry.place]
            left |= {manifest.digest for manifest in stored.values()}
        for digest in requested - left:
            forget_removal(self._root, digest)

    def _known_store(self, store: Store) -> dict[str, Manifest]:
        """What the store holds; at the first look, folders that a dead process left are swept."""
        if self._stored is None:
            listing = look(store, self._prefix)
            stored = {}
            for folder, data in listing.committed.items():
                try:
                    stored[folder] = Manifest.from_bytes(data, f"{store.name}/{folder}")
                except CheckpointCorruptError:
                    continue  # not ours to judge: it is neither offered, nor replaced, nor deleted
            for folder in listing.unfinished - listing.committed.keys():
                unpublish(store, self._prefix, folder)
            done = listing.unfinished & listing.committed.keys()
            for folder in sorted(done):  # the marker, whole or half written, of a dead writer
                base = under(self._prefix, folder)
                store.delete([under(base, MARKER), under(base, part_name(MARKER))])
            self._stored = stored
        return self._stored


def _committed(place: str, manifest: Manifest) -> Committed:
    return Committed(
        place=place,
        checkpoint_id=manifest.checkpoint_id,
        digest=manifest.digest,
        order=manifest.order,
        resumable=manifest.resumable,
    )
