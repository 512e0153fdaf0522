"""The parts of a sharded save in a store: its folder, files, records, and last its manifest.

Ranks whose checkpoint directories are not one meet here. Rank 0's worker, which has the lease,
*claims* a folder of the store for a save. A folder is given to one save and to no other, ever: so
what a process of an older run still sends cannot reach another checkpoint, though it has no lease.
Every rank's worker sends its files into the claimed folder, then puts its record beside the claim.
Whoever sees all records puts the manifest, if absent, which commits the checkpoint.

An object of the right size in a claimed folder is the right one: only this save's rank writes it,
and always the same bytes. So nothing need be recorded of what was sent.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import (
    MANIFEST,
    MARKER,
    PUBLISHING,
    part_file,
    part_name,
    parts_folder,
    rank_of_part_record,
    rank_of_shard,
    store_folder,
    under,
)
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.claimed_files import are_deleted, check_files
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.store.transfer.publish import Base
from bt_lightning.store.transfer.store_claims import Claim, Meeting, is_publication
from bt_lightning.store.transfer.store_reservations import Reservations
from bt_lightning.store.transfer.unpublish import give_up_uploads, own_keys, unpublish

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Collection, Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer.file_source import DescribedSource

log = logging.getLogger(__name__)

_CLAIM: Final = "claim.json"
_OUTCOME: Final = "outcome.json"
_BEAT: Final = "sending-"
_SMALL_BYTES: Final = 8 * 1024 * 1024
_READERS: Final = 16
_SAVE: Final = re.compile("[0-9a-f]{32}-[0-9]{1,9}", re.ASCII)
_SENDERS: Final = 4


class PartsInStore:
    """The place in a store where parts of one job's saves meet; used by any worker of the job."""

    def __init__(self, store: Store, prefix: str) -> None:
        """`prefix` is that of rank 0's node."""
        self._store = store
        self._prefix = prefix
        self._place = parts_folder(prefix)
        self._reservations = Reservations(store, prefix)

    @property
    def distant(self) -> bool:
        """Whether the store is on other machines."""
        return self._store.distant

    # rank 0's worker, with the lease

    def claim(self, save: str, checkpoint_id: str, after: int) -> Claim:
        """The folder of a save, claimed now or by an earlier worker; of a number above `after`.

        Raises:
            CheckpointNotFoundError: the save was ended.
            StoreError: the store refused.
        """
        known = self.find_claim(save)
        if known is not None:
            return known
        if self._store.size(self._key(save, _OUTCOME)) is not None:
            msg = f"the save of {checkpoint_id} was given up: it cannot be claimed any more"
            raise CheckpointNotFoundError(msg)
        number = after + 1
        while not self._reservations.reserve(save, store_folder(checkpoint_id, number)):
            number += 1
        claim = Claim(save, checkpoint_id, number)
        self._store.put(f"{self._at(claim)}/{MARKER}", PUBLISHING)  # for a sweep to find
        self._store.put_new(self._key(save, _CLAIM), claim.to_bytes())
        return claim

    def end(self, save: str, outcome: bytes | None = None) -> None:
        """Give up a save that is not committed: nothing more is sent for it, and none commits it.

        What a committed one left in the meeting place is deleted. Idempotent.

        Args:
            save: `SaveKey.folder`.
            outcome: left there for the other ranks, which find it by `Meeting.outcome`.

        Raises:
            StoreError: the store refused; what is left is ended by the next start.
        """
        claim = self._usable_claim(save)
        if claim is not None and self.manifest(claim) is not None:
            claim = self._usable_claim(save)  # behind its manifest, as in `commit`
            if claim is not None:
                self._forget(save, claim)
                return
        if outcome is not None:
            self._store.put(self._key(save, _OUTCOME), outcome)
        if claim is not None:
            self._store.delete([self._key(save, _CLAIM)])
            if self.manifest(claim) is None:  # after the claim: who commits looks at it once more
                base = self._at(claim)
                keys = own_keys(self._store, base)
                self._store.delete([key for key in keys if key != f"{base}/{MARKER}"])
                give_up_uploads(self._store, base, ())
                self._store.delete([f"{base}/{name}" for name in (MARKER, part_name(MARKER))])
        self._forget(save, None, but=_OUTCOME if outcome is not None else "")

    def sweep(self, run: str, finish: Callable[[Claim, Mapping[int, bytes]], object]) -> None:
        """End what runs other than `run` left. First `finish` is called, which may commit it.

        Raises:
            StoreError: the store refused.
        """
        for save in self.saves():
            if save.rpartition("-")[0] == run or is_publication(save):
                continue
            claim = self._usable_claim(save)
            if claim is not None and self.manifest(claim) is None:
                finish(claim, self.look(save).records)
            self.end(save)
        in_parallel(self._clear, self._reservations.folders(), _READERS)

    def _clear(self, folder: str) -> None:
        """Delete what a process put in a folder after its save was ended, and then died."""
        save, base = self._reservations.holder(folder), under(self._prefix, folder)
        try:
            if save is None or not self._is_ended(save, folder):
                return
            data = read_any(self._store, f"{base}/{MANIFEST}")
            manifest = None if data is None else Manifest.from_bytes(data, base)
        except CheckpointCorruptError as error:
            log.warning("what is in %s/%s stays: %s", self._store.name, base, error)
            return
        if manifest is None:
            keys = own_keys(self._store, base)
            late = [key for key in keys if rank_of_shard(key.removeprefix(f"{base}/")) is not None]
            self._store.delete(late)
        elif manifest.has_parts:  # its files may be gone
            self._store.put(f"{base}/{MARKER}", PUBLISHING)
            self._store.delete([f"{base}/{MANIFEST}"])
            unpublish(self._store, self._prefix, folder)

    def saves(self) -> list[str]:
        """Every save that has something in the meeting place."""
        paths = [info.key.removeprefix(f"{self._place}/") for info in self._store.list(self._place)]
        found = {path.partition("/")[0] for path in paths}
        return sorted(save for save in found if _SAVE.fullmatch(save))

    def claimed_folders(self) -> dict[str, str]:
        """Folder -> save of each claim."""
        claims = in_parallel(self._usable_claim, self.saves(), _READERS)
        return {claim.folder: claim.save for claim in claims if claim is not None}

    # every rank's worker

    def find_claim(self, save: str) -> Claim | None:
        """The claim of a save; None if it has none yet, or not any more.

        Raises:
            CheckpointCorruptError: it is damaged.
            StoreError: the store refused.
        """
        key = self._key(save, _CLAIM)
        data = self._store.read(key)
        return None if data is None else Claim.from_bytes(save, data, f"{self._store.name}/{key}")

    def _usable_claim(self, save: str) -> Claim | None:
        """The claim of a save; None also if it is damaged: then its folder is found by a marker."""
        try:
            return self.find_claim(save)
        except CheckpointCorruptError as error:
            log.warning("%s", error)
            return None

    def check(self, claim: Claim) -> None:
        """Check that a save may still be committed.

        Raises:
            CheckpointNotFoundError: it was ended.
            StoreError: the store refused.
        """
        if self.find_claim(claim.save) != claim:
            raise self._given_up(claim)

    def _given_up(self, claim: Claim) -> CheckpointNotFoundError:
        why = f"its parts may not be sent to {self._store.name}/{self._at(claim)} any more"
        return CheckpointNotFoundError(f"the save of {claim.checkpoint_id} was given up: {why}")

    def _is_ended(self, save: str, folder: str) -> bool:
        """Whether a save that had this folder was ended: a commit ends the reservation first."""
        claim = self.find_claim(save)
        if claim is not None and claim.folder == folder:
            return False
        return self._reservations.holder(folder) == save

    def send(
        self,
        claim: Claim,
        entries: Collection[FileEntry],
        source_of: Callable[[FileEntry], contextlib.AbstractContextManager[DescribedSource]],
        *,
        base: Base | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a part's files that are not in the folder yet; blocks of `base` are copied there.

        `check` is called before each file; what it raises ends the call, which can be repeated.

        Raises:
            CheckpointNotFoundError: the save was ended.
            CheckpointCorruptError: a file is damaged.
            StoreError: the store refused.
        """
        place = self._at(claim)
        sizes = {info.key: info.size for info in self._store.list(place)}
        sent = False

        def one(entry: FileEntry) -> None:
            nonlocal sent
            key = f"{place}/{entry.path}"
            if sizes.get(key) == entry.size:
                return
            check()
            self.check(claim)
            sent = True
            with source_of(entry) as source:
                self._store.send(source, key, base.reuse(entry) if base else None)

        try:
            for entry in entries:
                if entry.size > _SMALL_BYTES:
                    one(entry)
            in_parallel(one, [entry for entry in entries if entry.size <= _SMALL_BYTES], _SENDERS)
            if sent and self._is_ended(claim.save, claim.folder):
                raise self._given_up(claim)
        except CheckpointNotFoundError:
            if self._is_ended(claim.save, claim.folder):  # it may have landed behind the deletion
                self._store.delete([f"{place}/{entry.path}" for entry in entries])
            raise

    def base(self, claim: Claim, manifest: Manifest) -> Base:
        """What `send` can copy from, for a part of a later checkpoint."""
        return Base(self._at(claim), manifest)

    def put_record(self, save: str, rank: int, record: bytes) -> None:
        """Put the record of a rank's part, whose files are all there, or which is not to be had."""
        self._store.put(self._key(save, part_file(rank)), record)

    def beat(self, save: str, rank: int, count: int) -> None:
        """Say that a rank is still sending its part, for the `count`th time, from 1."""
        self._store.put(self._key(save, f"{_BEAT}{rank:05}-{count}"), b"")
        self._store.delete([self._key(save, f"{_BEAT}{rank:05}-{count - 1}")])

    def look(self, save: str, known: Collection[int] = ()) -> Meeting:
        """What there is of a save, by one listing, and a read for each record that is not `known`.

        Raises:
            CheckpointCorruptError: the claim is damaged.
            StoreError: the store refused.
        """
        place = f"{self._place}/{save}"
        names = {info.key.removeprefix(f"{place}/") for info in self._store.list(place)}
        each = map(rank_of_part_record, names)
        ranks = frozenset(rank for rank in each if rank is not None)
        unread = sorted(ranks.difference(known))
        read = in_parallel(
            lambda rank: self._store.read(f"{place}/{part_file(rank)}"), unread, _READERS
        )
        records = {rank: data for rank, data in zip(unread, read, strict=True) if data is not None}
        return Meeting(
            claim=self.find_claim(save) if _CLAIM in names else None,
            records=records,
            ranks=ranks,
            outcome=self._store.read(f"{place}/{_OUTCOME}") if _OUTCOME in names else None,
            beats=frozenset(name for name in names if name.startswith(_BEAT)),
        )

    def manifest(self, claim: Claim) -> Manifest | None:
        """The manifest of a claimed folder; None as long as the save is not committed.

        Raises:
            CheckpointCorruptError: it is damaged.
        """
        key = f"{self._at(claim)}/{MANIFEST}"
        data = read_any(self._store, key)
        return None if data is None else Manifest.from_bytes(data, f"{self._store.name}/{key}")

    def has(self, manifest: Manifest) -> bool:
        """Whether a checkpoint whose parts met here is still committed."""
        claim = Claim("", manifest.checkpoint_id, manifest.generation)
        return read_any(self._store, f"{self._at(claim)}/{MANIFEST}") == manifest.to_bytes()

    def commit(self, claim: Claim, manifest: Manifest) -> None:
        """Commit a save of which all records are there; idempotent, and by several at a time.

        Raises:
            CheckpointNotFoundError: the save was ended.
            CheckpointCorruptError: a file is not there in its length.
            StoreError: the store refused.
        """
        place = self._at(claim)
        if self.manifest(claim) != manifest:
            self.check(claim)
            check_files(self._store, place, manifest)
            self._store.put_new(f"{place}/{MANIFEST}", manifest.to_bytes())
        if self.find_claim(claim.save) != claim and (
            self._reservations.holder(claim.folder) is not None
            or are_deleted(self._store, place, manifest)
        ):  # it was ended, or another worker committed the same, and that was deleted since
            self._store.delete([f"{place}/{MANIFEST}"])
            raise self._given_up(claim)
        self._finish(claim)  # also if another worker committed the same, and has finished

    def _finish(self, claim: Claim) -> None:
        self._store.delete([f"{self._at(claim)}/{MARKER}"])
        self._forget(claim.save, claim)

    def _forget(self, save: str, committed: Claim | None, but: str = "") -> None:
        """Delete what is in the meeting place; of a committed save its reservation, first."""
        if committed is not None:
            self._reservations.free(committed.folder)
        self._store.delete([self._key(save, _CLAIM)])
        left = [info.key for info in self._store.list(f"{self._place}/{save}")]
        self._store.delete([key for key in left if key != self._key(save, but)])

    def _key(self, save: str, name: str) -> str:
        return f"{self._place}/{save}/{name}"

    def _at(self, claim: Claim) -> str:
        return under(self._prefix, claim.folder)
