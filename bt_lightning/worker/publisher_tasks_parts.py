"""What the publisher of rank 0's worker does for checkpoints that several ranks write."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    StoreError,
    StorePermanentError,
)
from bt_lightning.localdir.newest_in_store import note_newest_in_store
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, under
from bt_lightning.sharding.gather_verdict import WholeGather, judge_parts, manifest_of
from bt_lightning.sharding.save_part import PartRecord
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.store_claims import is_publication, publication_of
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker.publish_shards import ShardPublication
from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.sharding.save_part import SaveKey
    from bt_lightning.store.catalog.listing import JobListing
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer.publish import Base
    from bt_lightning.store.transfer.store_claims import Claim

log = logging.getLogger(__name__)


class ShardedTasks(SmallDiskTasks):
    """Called by the publisher's thread, which alone has the lease."""

    _run = ""
    """The run whose saves are under way; empty until its first one."""
    _claimed: Collection[str] = ()
    """Folders of saves of any run that were under way at the last look."""
    helped: Collection[str] = ()
    """Digests of checkpoints of a shared directory whose shards other ranks' workers send."""

    def claim_parts(self, key: SaveKey, checkpoint_id: str, after: int) -> Claim:
        """The folder of a save, which this run's other ranks send their parts to.

        The first time, what earlier runs left is committed if it is whole, else ended.

        Raises:
            StoreError: the store refused, or another process has the lease.
        """
        parts = self._parts()
        if self._run != key.run:
            parts.sweep(key.run, lambda claim, records: self._finish_older(parts, claim, records))
            self._run = key.run
        known = self._newest.get(checkpoint_id)
        newest = known.generation if known is not None else 0
        return parts.claim(key.folder, checkpoint_id, max(after, newest))

    def commit_parts(self, claim: Claim, manifest: Manifest) -> None:
        """Commit a save of which all parts are there; retention counts it from now on.

        Raises:
            CheckpointNotFoundError: it was ended.
            CheckpointCorruptError: a file is not there in its length.
            StoreError: the store refused.
        """
        self._parts().commit(claim, manifest)
        self._note(claim, manifest)

    def end_parts(self, key: SaveKey, outcome: bytes) -> None:
        """Give up a save; `outcome` tells the other ranks why.

        Raises:
            StoreError: the store refused.
        """
        self._parts().end(key.folder, outcome)

    def _parts(self) -> PartsInStore:
        if self._store is None:
            msg = "there is no store in which parts could meet"
            raise StorePermanentError(msg)
        self._known_store(self._store)
        self._leased.lease.confirm()
        return PartsInStore(self._store, self._prefix)

    def _note(self, claim: Claim, manifest: Manifest) -> None:
        if self._stored is not None:
            self._add(self._stored, claim.folder, manifest)
        with contextlib.suppress(OSError):  # it is committed all the same
            note_newest_in_store(self._root, manifest)

    def _finish_older(
        self, parts: PartsInStore, claim: Claim, records: Mapping[int, bytes]
    ) -> None:
        """Commit a save of an earlier run, if all its ranks had sent their parts.

        Raises:
            StoreError: the store refused.
        """
        try:
            found = {
                rank: PartRecord.from_bytes(data, claim.folder) for rank, data in records.items()
            }
            part = next((record.part for record in found.values()), None)
            if part is None or part.key.folder != claim.save:
                return
            if isinstance(judge_parts(found, part), WholeGather):
                manifest = manifest_of(found, claim.number)
                parts.commit(claim, manifest)
                self._note(claim, manifest)
        except StoreError:  # what it would have committed must not be ended
            raise
        except CheckpointError as error:
            log.warning("a save of an earlier run is given up: %s", error)

    def _publish(self, store: Store, found: LocalCheckpoint, base: Base | None) -> str:
        """Publish; shards of a directory that ranks share are sent by each rank's own worker."""
        if not found.manifest.has_parts:
            return super()._publish(store, found, base)
        parts = PartsInStore(store, self._prefix)
        helped = store.distant and found.manifest.digest in self.helped
        how = ShardPublication(parts, found, base, self._check, self.meter.add, helped)
        self._leased.lease.confirm()
        try:
            return how.run()
        except (CheckpointCorruptError, CheckpointNotFoundError):
            parts.end(publication_of(found.manifest))
            raise

    def _sweep(self, store: Store, listing: JobListing) -> None:
        """Sweep, but for what other ranks are sending: that is ended by its claim."""
        parts = PartsInStore(store, self._prefix)
        waiting = {publication_of(found.manifest) for found in self.outbox()}
        for save in parts.saves():
            if (
                is_publication(save) and save not in waiting
            ):  # also of what is published: late signs
                parts.end(save)
        claimed = parts.claimed_folders()
        self._claimed = claimed.keys()
        unfinished = listing.unfinished.difference(claimed)
        left = unfinished.difference(listing.committed)
        unfinished -= {folder for folder in left if self._was_committed(store, folder)}
        super()._sweep(store, replace(listing, unfinished=unfinished))

    def _was_committed(self, store: Store, folder: str) -> bool:
        """Whether another rank's worker has put the manifest since the listing.

        To be asked behind the look at the claims: a claim goes behind its manifest.
        """
        data = read_any(store, f"{under(self._prefix, folder)}/{MANIFEST}")
        if data is None:
            return False
        with contextlib.suppress(CheckpointCorruptError):
            manifest = Manifest.from_bytes(data, folder)
            if self._stored is not None:
                self._add(self._stored, folder, manifest)
        return True

    def _give_up_uploads(self, store: Store, keep: Collection[str]) -> None:
        """Abort unfinished uploads, unless some may be of other ranks."""
        if not self._claimed:
            super()._give_up_uploads(store, keep)
