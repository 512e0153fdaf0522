"""The checkpoints of one job: in a directory, in the job's part of a store, or in both."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from bt_lightning.manage.checkpoint_items import COMPLETE, SYNCING, CheckpointItem
from bt_lightning.path_layout import PROTECTION, jobs_prefix, under
from bt_lightning.protection_record import Protection
from bt_lightning.store.catalog import protection as stored_protection
from bt_lightning.store.catalog.listed_manifests import list_manifests
from bt_lightning.store.catalog.projects import ListedCheckpoint, newest_of_each
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.checkpoint_reader import StoreReader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from bt_lightning.manage.checkpoint_items import JobCheckpoints
    from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
    from bt_lightning.store.catalog.listed_manifests import ListedManifests
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer import checkpoint_reader


class StoreCheckpoints:
    """The checkpoints in a job's part of a store, of all its nodes."""

    def __init__(self, store: Store, project: str, job: str, cache: Path | None = None) -> None:
        self.store, self._cache = store, cache
        self._prefix = jobs_prefix(project, job)
        self.project, self.job = project, job
        self.name = f"{store.name}/{self._prefix}"
        self._refused: list[str] = []
        self._items: list[CheckpointItem] | None = None

    @property
    def refused(self) -> list[str]:
        """Reasons, as of the last listing."""
        return self._refused

    def items(self) -> list[CheckpointItem]:
        """Lists the store at the first call, and reads manifests that are not in the cache."""
        if self._items is None:
            listed = list_manifests(self.store, self._prefix, self._cache, whole=True)
            self._refused = listed.refused
            protected = {under(self._prefix, folder) for folder in listed.listing.protected}
            found = checkpoints_by_job(listed).values()
            self._items = items_of_job(chain.from_iterable(found), protected)
        return self._items

    def take_over(self, items: Iterable[CheckpointItem], refused: Iterable[str]) -> None:
        """Use the results of a listing of several jobs instead of listing again."""
        self._items, self._refused = list(items), list(refused)

    def forget(self) -> None:
        """List again at the next call of `items`."""
        self._items = None

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A reader of its folder in the store."""
        return StoreReader(self.store, "", item.where)

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """A URL that the store signs."""
        return self.store.sign(f"{item.where}/{path}", expires_s)

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Read from the store."""
        data = read_any(self.store, f"{item.where}/{PROTECTION}")
        return None if data is None else Protection.from_bytes(data)

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Written to the store."""
        stored_protection.protect_stored(self.store, item.where, protection)
        self.forget()

    def unprotect(self, item: CheckpointItem) -> None:
        """Deleted from the store."""
        stored_protection.unprotect_stored(self.store, item.where)
        self.forget()


class JoinedCheckpoints:
    """A job's part of a store and its directory as one; the store's copy of an item goes first."""

    def __init__(self, store: StoreCheckpoints, directory: DirectoryCheckpoints) -> None:
        self.store_part, self.directory_part = store, directory
        self.name, self.project, self.job = store.name, store.project, store.job
        self._local: set[str] = set()

    @property
    def refused(self) -> list[str]:
        """Reasons of both."""
        return [*self.store_part.refused, *self.directory_part.refused]

    def items(self) -> list[CheckpointItem]:
        """The store's checkpoints, and those that only the disk has so far."""
        stored = self.store_part.items()
        known = {item.manifest.digest for item in stored}
        names = {item.name for item in stored}
        local = [
            replace(
                item,
                job=self.job,
                project=self.project,
                sync_status=SYNCING if item.committed else item.sync_status,
            )
            for item in self.directory_part.items()
            if (item.manifest.digest not in known if item.committed else item.name not in names)
        ]
        self._local = {item.where for item in local}
        return sorted([*local, *stored], key=lambda item: item.manifest.order, reverse=True)

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """In the store, if that has it."""
        return self._part_of(item).reader(item)

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """In the store, if that has it."""
        return self._part_of(item).url(item, path, expires_s)

    def protection(self, item: CheckpointItem) -> Protection | None:
        """In the store, if that has it."""
        return self._part_of(item).protection(item)

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """In the store, if that has it."""
        self._part_of(item).protect(item, protection)

    def unprotect(self, item: CheckpointItem) -> None:
        """In the store, if that has it."""
        self._part_of(item).unprotect(item)

    def only_on_disk(self, item: CheckpointItem) -> bool:
        """Whether only the disk has it, as of the last `items`."""
        return item.where in self._local

    def _part_of(self, item: CheckpointItem) -> JobCheckpoints:
        return self.directory_part if self.only_on_disk(item) else self.store_part


def checkpoints_by_job(listed: ListedManifests) -> dict[tuple[str, str], list[ListedCheckpoint]]:
    """(Project, job) -> the checkpoints that were listed; none for a job with damaged ones only."""
    found: dict[tuple[str, str], list[ListedCheckpoint]] = {}
    for folder, place in listed.places.items():
        own = found.setdefault((place.project, place.job), [])
        manifest = listed.manifests.get(folder)
        if manifest is not None:
            own.append(ListedCheckpoint(place, manifest))
    return found


def items_of_job(
    found: Iterable[ListedCheckpoint], protected: AbstractSet[str]
) -> list[CheckpointItem]:
    """Items of the checkpoints of one job, newest first; `protected` are key prefixes."""
    newest = newest_of_each(found)
    owners: dict[str, int] = {}
    for one in newest:
        rank = one.location.node_rank
        owners[one.checkpoint_id] = min(rank, owners.get(one.checkpoint_id, rank))
    items = []
    for one in newest:
        place, name, where = one.location, one.checkpoint_id, one.location.base
        items.append(
            CheckpointItem(
                project=place.project,
                job=place.job,
                node_rank=place.node_rank,
                name=name if owners[name] == place.node_rank else f"rank-{place.node_rank}/{name}",
                where=where,
                manifest=one.manifest,
                protected=where in protected,
                sync_status=COMPLETE,
            )
        )
    return items
