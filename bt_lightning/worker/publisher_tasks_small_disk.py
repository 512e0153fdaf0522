"""Publishing from a disk that may be too small: copies make room, and images are streamed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointExistsError, StoreError, StorePermanentError
from bt_lightning.localdir.atomic_directory import make_trash
from bt_lightning.localdir.newest_in_store import note_newest_in_store
from bt_lightning.localdir.removal_requests import make_requests
from bt_lightning.localdir.sidecars import is_sidecar
from bt_lightning.retention import Decision, evictable, places_decided
from bt_lightning.store.transfer.publish import (
    Content,
    base_of,
    folder_for,
    is_published,
    publish_sources,
)
from bt_lightning.worker.publisher_tasks import PublisherTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.worker.disk_removals import DiskRemovals


class SmallDiskTasks(PublisherTasks):
    """Called by the publisher's thread, except where it says otherwise."""

    def prepare(self) -> None:
        """Have what deleting needs, before the disk is full."""
        make_trash(self._root)
        make_requests(self._root)

    @property
    def removals(self) -> DiskRemovals:
        """What deletes from the disk."""
        return self._removals

    def newest(self, checkpoint_id: str) -> Manifest | None:
        """The newest generation of an id that the store is known to hold; by any thread."""
        return self._newest.get(checkpoint_id)

    def evictable(self) -> list[LocalCheckpoint]:
        """Whose copies here may go since the store has them, so far as is known: oldest first.

        Raises:
            StoreError: the store refused to say what it has.
        """
        if self._store is None:
            return []
        stored = {manifest.digest for manifest in self._known_store(self._store).values()}
        local, disk = self._removals.look()
        found = [local[one.place] for one in evictable(disk, stored, self._removals.policy)]
        return [one for one in found if not is_sidecar(one.path)]  # others may need their files

    def is_stored(self, manifest: Manifest) -> bool:
        """Ask the store whether it has that checkpoint, and whether we have the lease then.

        Raises:
            StoreError: the store refused, or the lease is another's.
        """
        if self._store is None:
            return False
        known = self._known_store(self._store).items()
        folders = [folder for folder, other in known if other.digest == manifest.digest]
        there = any(is_published(self._store, self._prefix, f, manifest) for f in folders)
        self._leased.lease.confirm()
        return there

    def kept_here(self) -> int:
        """How many checkpoints on the disk the retention policy keeps, whatever needs room."""
        _, disk = self._removals.look()
        return len(places_decided(disk, Decision.KEEP, self._removals.policy))

    def stream(
        self, describe: Callable[[int], Manifest], sources: Mapping[str, DescribedSource]
    ) -> Manifest:
        """Commit in the store what the disk has no room for; what was committed before is found.

        `describe` makes the manifest, of a generation that is greater than the one it is given.

        Raises:
            StoreError: the store refused, or there is none; nothing is committed.
            CheckpointExistsError: somebody else committed it just now.
        """
        if self._store is None:
            msg = "there is no store that it could be sent to"
            raise StorePermanentError(msg)
        stored = self._known_store(self._store)
        manifest = describe(0)
        known = self._newest.get(manifest.checkpoint_id)
        if known is not None and known.created_at == manifest.created_at:
            return known
        if known is not None:
            manifest = describe(known.generation)
        self._begun[folder_for(self._store, self._prefix, manifest)[0]] = None
        behind = 0
        with contextlib.suppress(OSError):  # a disk that fails is why it is streamed
            behind = len(self.outbox())
        self.meter.begin(manifest.checkpoint_id, manifest.size, behind)
        try:
            folder = publish_sources(
                self._store,
                self._prefix,
                Content(manifest, sources),
                base=base_of(self._prefix, stored),
                publisher=self._leased,
            )
        except (StoreError, CheckpointExistsError) as error:
            self.meter.end(str(error))
            raise
        self.meter.end()
        self._add(stored, folder, manifest)
        with contextlib.suppress(OSError):  # it is committed all the same
            note_newest_in_store(self._root, manifest)
        return manifest
