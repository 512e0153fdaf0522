"""What the publisher does, one unit at a time; what is left to do is read off disk and store.

Nothing here is remembered that a restart would need: the outbox is what is committed on the disk
and not in the store, and removal requests lie on the disk, as does what was sent of it. Nothing is
written to the store without the lease.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    StoreError,
)
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.localdir.removal_requests import forget_removal
from bt_lightning.localdir.upload_status import UploadMeter
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, MARKER, part_name, store_folder, under
from bt_lightning.retention import TierCheckpoint, publishable, removable
from bt_lightning.store.catalog.listing import JobListing, list_job
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.publish import Base, LeasedPublisher, base_of, publish, send_ahead
from bt_lightning.store.transfer.resume_publication import SentFiles
from bt_lightning.store.transfer.unpublish import give_up_uploads, unpublish
from bt_lightning.worker.disk_removals import DiskRemovals
from bt_lightning.worker.publish_fit_ledger import FitLedgerPublisher
from bt_lightning.worker.publish_manifest_index import ManifestIndexPublisher
from bt_lightning.worker.take_removal_requests import take_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.store.interface import Store
    from bt_lightning.worker.early_upload import EarlyUpload
    from bt_lightning.worker.publish_job_files import JobFilePublisher
    from bt_lightning.worker.send_logs import LogSender


class PublisherTasks:
    """Publishing and deleting for one checkpoint directory and one part of a store."""

    def __init__(
        self,
        root: Path,
        store: Store | None,
        prefix: str,
        resumed_from: Collection[str],
        *,
        check: Callable[[], None] = lambda: None,
        files: JobFilePublisher | None = None,
        removals: DiskRemovals | None = None,
    ) -> None:
        """`removals` deletes from the disk, and has the retention policy that holds here as well.

        Without one, it is made with what the run resumed from (digests) and the usual policy.
        `check` is called between two files; what it raises ends the unit, for others to do.
        `files` are those that belong to no checkpoint, if they are to be sent; none without a
        store.
        """
        self._root = root
        self._store = store
        self._prefix = prefix
        self._removals = DiskRemovals(root, resumed_from) if removals is None else removals
        self._check = check
        self.files = files
        self.logs: LogSender | None = None
        """Sends the logs, on a thread of its own, if there is a store."""
        self._other_files: dict[str, int] = {}
        """Files of the store that belong to no checkpoint, as of the last look at it."""
        self._unreadable: frozenset[str] = frozenset()
        """Folders of the store whose manifest cannot be read."""
        self._stored: dict[str, Manifest] | None = None
        self._damaged: set[str] = set()
        self._begun: dict[str, EarlyUpload | None] = {}
        """Folders with files of what may never be published; None for what an earlier try sent."""
        self._held: LeasedPublisher | None = None
        self._newest: dict[str, Manifest] = {}
        """By id; kept when the store is looked at again, as it may not answer."""
        self._ledger = FitLedgerPublisher(root, prefix)
        self._index = ManifestIndexPublisher(prefix)
        self.meter = UploadMeter(root)
        self.complaints: list[str] = []
        """What was found damaged since the reader last emptied it."""

    @property
    def known_stored(self) -> list[Manifest] | None:
        """What the store is known to hold; None while that is not known. Any thread may ask."""
        return None if self._stored is None else list(self._stored.values())

    def forget(self) -> None:
        """Trust nothing known of the store; look again before the next unit."""
        self._stored = None
        self._ledger.forget()
        self._index.forget()
        if self.files is not None:
            self.files.forget()

    def leave(self) -> None:
        """Release the lease, so that another process may write to the store; called last."""
        if self._held is not None:
            self._held.lease.release()

    def hand_over(self) -> None:
        """Let another process of this directory go on; what is known of the store is forgotten."""
        if self._held is not None:
            self._held.lease.hand_over()
        self._held = None
        self.forget()
        self._begun.clear()

    def send_ahead(self, offer: EarlyUpload) -> None:
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
        if self._begun.get(folder) is None:
            self._begun[folder] = offer
        base, place = base_of(self._prefix, stored), under(self._prefix, folder)
        while (source := offer.take()) is not None:
            try:
                send_ahead(self._store, place, source, base, self._leased)
            except CheckpointNotFoundError:
                return  # the commit failed
            finally:
                source.close()

    def outbox(self) -> list[LocalCheckpoint]:
        """What the store is still to have of the disk, newest first; `publishable` says what."""
        if self._store is None:
            return []
        local, disk = self._removals.look()
        stored = list((self._stored or {}).items())  # another thread may be adding to it
        sent = [TierCheckpoint.of(folder, manifest) for folder, manifest in stored]
        waiting = [local[place] for place in publishable(disk, sent, self._removals.policy)]
        return [found for found in waiting if found.manifest.digest not in self._damaged]

    def publish_next(self) -> LocalCheckpoint | None:
        """Publish the newest checkpoint of the outbox; None if it is empty.

        Raises:
            StoreError: the store refused; what it holds is looked up again before the next try.
            OSError: the disk does not give what waits.
        """
        if self._store is None:
            return None
        stored = self._known_store(self._store)
        self._ledger.send(self._store, self._leased.lease)
        if self.files is not None:
            self.files.commit_foreign(self._newest.get, self._check)
        outbox = self.outbox()
        failed: OSError | None = None
        for behind, found in zip(reversed(range(len(outbox))), outbox, strict=True):
            manifest = found.manifest
            self.meter.begin(manifest.checkpoint_id, manifest.size, behind)
            try:
                with self._removals.sending(manifest):
                    folder = self._publish(self._store, found, base_of(self._prefix, stored))
            except (CheckpointNotFoundError, CheckpointExistsError):
                # replaced here, or taken there, meanwhile: the next look sees which
                self._begun[store_folder(manifest.checkpoint_id, manifest.generation)] = None
                continue
            except CheckpointCorruptError as error:
                self._damaged.add(found.manifest.digest)  # must not stand before the whole ones
                self.complaints.append(str(error))
                continue
            except StoreError as error:
                self.meter.end(str(error))
                raise
            except OSError as error:  # of the disk: another one may be read
                failed = error
                continue
            self.meter.end()
            self._add(stored, folder, found.manifest)
            return found
        if outbox:
            self.meter.end(str(failed or ""))
        else:
            self._index.send(self._store, self._leased.lease, stored)
        if failed is not None:
            raise failed
        return None

    def _publish(self, store: Store, found: LocalCheckpoint, base: Base | None) -> str:
        return publish(store, self._prefix, found, base=base, publisher=self._leased)

    def send_files(self, go_on: Callable[[], bool]) -> bool:
        """Send files that belong to no checkpoint, for a while; return whether there are more.

        Raises:
            StoreError: the store refused.
        """
        if self.files is None or self._store is None or not self.files.ready:
            return False
        stored = self._known_store(self._store)
        self.files.begin(self._store, self._prefix, self._other_files)
        checkpoints = {*stored, *self._unreadable, *self._begun}
        lease = self._leased.lease
        return self.files.send(self._store, self._prefix, lease, checkpoints, go_on)

    def delete_begun(self) -> None:
        """Delete what was sent of checkpoints that were not committed, or are to go by now."""
        ended = [folder for folder, offer in self._begun.items() if offer is None or offer.over]
        if self._store is None or not ended:
            return
        stored = self._known_store(self._store)
        waiting = self._waiting()
        for folder in ended:
            if folder not in waiting:
                if folder not in stored:
                    self._unpublish(self._store, folder)
                del self._begun[folder]

    def _add(self, stored: dict[str, Manifest], folder: str, manifest: Manifest) -> None:
        stored[folder] = manifest
        known = self._newest.get(manifest.checkpoint_id)
        if known is None or known.order < manifest.order:
            self._newest[manifest.checkpoint_id] = manifest

    def _drop(self, stored: dict[str, Manifest], entry: TierCheckpoint) -> None:
        """Forget what was deleted from the store; nothing is remembered of an id that is gone."""
        del stored[entry.place]
        self._newest.pop(entry.checkpoint_id, None)
        for folder, manifest in stored.items():
            if manifest.checkpoint_id == entry.checkpoint_id:
                self._add(stored, folder, manifest)

    def _unsent_files(self) -> list[str]:
        return self.files.unsent() if self.files is not None else []

    def _waiting(self) -> dict[str, LocalCheckpoint]:
        """The outbox by the folders that its checkpoints will have."""
        return {
            store_folder(found.manifest.checkpoint_id, found.manifest.generation): found
            for found in self.outbox()
        }

    def _unpublish(self, store: Store, folder: str, keep: Collection[str] = ()) -> bool:
        self._leased.lease.confirm()
        if not keep:
            self._leased.sent.drop(under(self._prefix, folder))
        return unpublish(store, self._prefix, folder, keep)

    def delete_local(self) -> None:
        """Delete from the disk whatever may go; needs no store."""
        self._removals.clear()

    def delete_stored(self, *, only_foreign: bool = False) -> None:
        """Delete from the store whatever may go there, and drop the requests that are done.

        What was asked for in the store, from wherever, is taken over first: disk and store alike.
        With `only_foreign`, only what other programs wrote, and deleted.
        """
        ids = self.files.foreign.ids if self.files is not None else set[str]()
        if only_foreign and not ids:
            return
        if self._store is not None and not only_foreign:
            self._known_store(self._store)
            take_requests(self._root, self._store, self._prefix, self._removals.wake)
        local, disk = self._removals.look()
        left: set[str] = set()
        if self._store is not None:
            stored = self._known_store(self._store)
            held = [TierCheckpoint.of(folder, manifest) for folder, manifest in stored.items()]
            tier = replace(disk, name="store", checkpoints=held)
            for entry in removable(tier, self._removals.policy):
                if only_foreign and entry.checkpoint_id not in ids:
                    continue
                if self._unpublish(self._store, entry.place):  # what is protected there stays
                    self._drop(stored, entry)
            left = {manifest.digest for manifest in stored.values()}
        # Now, not before: the disk may have come to it meanwhile.
        left |= {f.manifest.digest for f in local.values() if (f.path / MANIFEST).exists()}
        for digest in disk.requests.keys() - left:
            forget_removal(self._root, digest)

    @property
    def _leased(self) -> LeasedPublisher:
        assert self._held is not None, "the store must be listed before anything is written"
        return self._held

    def _known_store(self, store: Store) -> dict[str, Manifest]:
        """What the store holds; the first look takes the lease, and sweeps what dead ones left.

        Raises:
            LeaseHeldError: another process publishes there.
        """
        if self._stored is None:
            if self._held is None:
                self._held = LeasedPublisher(
                    Lease(store, self._prefix, publisher_id_of(self._root)),
                    SentFiles(self._root, f"{store.name}/{self._prefix}"),
                    self.meter.add,
                    self._check,
                )
            lease, sent = self._held.lease, self._held.sent
            lease.take()
            sent.begin_lease(lease.previous_token, lease.token)
            listing = list_job(store, self._prefix)
            stored: dict[str, Manifest] = {}
            for folder, data in listing.committed.items():
                with contextlib.suppress(CheckpointCorruptError):
                    # not ours to judge: it is neither offered, nor replaced, nor deleted
                    self._add(stored, folder, Manifest.from_bytes(data, f"{store.name}/{folder}"))
            self._stored = stored
            self._unreadable = frozenset(listing.committed.keys() - stored.keys())
            self._other_files = listing.job_files()
            self._sweep(store, listing)
        return self._stored

    def _sweep(self, store: Store, listing: JobListing) -> None:
        """Delete what dead processes left, but for what the outbox will go on with."""
        waiting = self._waiting()
        for folder in listing.unfinished - listing.committed.keys():
            goes_on = folder in waiting or folder in self._begun
            keep = self._leased.sent.under(under(self._prefix, folder)) if goes_on else ()
            self._unpublish(store, folder, keep)
            if keep:
                self._begun.setdefault(folder, None)
        for folder in sorted(listing.unfinished & listing.committed.keys()):
            base = under(self._prefix, folder)  # the marker, whole or half written, of a dead one
            store.delete([under(base, MARKER), under(base, part_name(MARKER))])
        uploads = {
            under(self._prefix, f"{folder}/{entry.path}")
            for folder, found in waiting.items()
            for entry in found.manifest.files
        }
        sent = (under(self._prefix, path) for path in self._unsent_files())
        self._give_up_uploads(store, uploads.union(sent))

    def _give_up_uploads(self, store: Store, keep: Collection[str]) -> None:
        give_up_uploads(store, self._prefix, keep)
