"""The checkpoints of one job: in a directory, in the job's part of a store, or in both."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir import protection as local_protection
from bt_lightning.localdir.atomic_directory import delete_directory, tidy
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest
from bt_lightning.manifest import Manifest, of_newest_fit
from bt_lightning.path_layout import MANIFEST, PROTECTION, committed_at, jobs_prefix, under
from bt_lightning.protection_record import Protection
from bt_lightning.settings import Settings
from bt_lightning.store.catalog import protection as stored_protection
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.catalog.projects import CatalogEntry, JobView, NodeFolder
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.checkpoint_reader import DirectoryReader, StoreReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer import checkpoint_reader

SYNCING, COMPLETE = "SYNCING", "COMPLETE"
_MAX_NEAR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointItem:
    """One committed checkpoint of a job."""

    project: str
    job: str
    node_rank: int
    name: str
    """What `find` takes: its id, or `rank-N/<id>` where another node has the same id."""
    where: str
    """Key prefix in the store, or the directory."""
    manifest: Manifest
    protected: bool
    sync_status: str | None = None
    """`COMPLETE`: durable in the store. `SYNCING`: on this disk only, so far. None: unknown."""


class JobCheckpoints(Protocol):
    """The checkpoints of a job. Used by one thread; what `reader` returns, by several."""

    name: str
    """Directory or URL, for messages."""
    project: str
    job: str

    @property
    def refused(self) -> Sequence[str]:
        """Why folders that look like checkpoints are left out; known after `items`."""

    def items(self) -> list[CheckpointItem]:
        """All checkpoints, newest first."""

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A reader of its bytes."""

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """A URL of one of its files, valid for `expires_s` seconds; a secret if it is signed."""

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Its protection; None if it has none."""

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Protect it from deletion."""

    def unprotect(self, item: CheckpointItem) -> None:
        """Remove its protection."""


def find(source: JobCheckpoints, name: str) -> CheckpointItem:
    """The item of that name; `latest` is the newest of the fit that saved last.

    Raises:
        CheckpointNotFoundError: there is none; the message lists similar names.
    """
    items = source.items()
    if name == "latest" and items:
        return of_newest_fit(items, lambda item: item.manifest)[0]
    for item in items:
        if name in {item.name, f"rank-{item.node_rank}/{item.name}"}:
            return item
    names = [item.name for item in items]
    near = difflib.get_close_matches(name, names, _MAX_NEAR, 0.3) or names[:_MAX_NEAR]
    has = f"it has {', '.join(near)}" if len(near) == len(names) else f"near: {', '.join(near)}"
    msg = f"{source.name} has no checkpoint {name!r}" + (f" ({has})" if near else ": it is empty")
    raise CheckpointNotFoundError(msg)


class DirectoryCheckpoints:
    """The checkpoints that are committed under a directory."""

    def __init__(self, root: Path) -> None:
        self.name, self._root = str(root), root
        job = job_of(Settings.from_environ(os.environ), root)
        self.project, self.job, self._rank = job.project, job.job, job.node_rank
        self._refused: list[str] = []
        self.unread: list[str] = []
        """Those of `refused` about folders that could not be read."""

    @property
    def refused(self) -> list[str]:
        """Reasons, as of the last `items`."""
        return self._refused

    def items(self) -> list[CheckpointItem]:
        """Read from the disk at each call; only the newest generation of an id."""
        found, refused, unread = list_committed(self._root)
        self.unread = [item.reason for item in unread]
        self._refused = [*self.unread, *(item.reason for item in refused)]
        items: dict[str, CheckpointItem] = {}
        for checkpoint in sorted(found, key=lambda c: c.manifest.order, reverse=True):
            name = checkpoint.path.relative_to(self._root).as_posix()
            item = CheckpointItem(
                project=self.project,
                job=self.job,
                node_rank=self._rank,
                name=name,
                where=str(checkpoint.path),
                manifest=checkpoint.manifest,
                protected=local_protection.is_protected_local(checkpoint.path),
            )
            items.setdefault(name, item)
        return list(items.values())

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A reader of the directory; close it after use."""
        return DirectoryReader(self._path(item))

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:  # noqa: ARG002 - has no end
        """A file:// URL, which does not expire."""
        return (self._path(item) / path).resolve().as_uri()

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Read from the disk."""
        return local_protection.protection_of(self._path(item))

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Written to the disk, durably."""
        local_protection.protect_local(self._path(item), protection)

    def unprotect(self, item: CheckpointItem) -> None:
        """Deleted from the disk."""
        local_protection.unprotect_local(self._path(item))

    def delete(self, item: CheckpointItem) -> None:
        """Delete it from the disk, unless it is protected or was replaced since `items`.

        Raises:
            CheckpointProtectedError: it is protected.
            CheckpointNotFoundError: it is gone, or was replaced.
        """
        path = self._path(item)
        protection = self.protection(item)
        if protection is not None:
            raise stored_protection.protected_error(item.name, protection)
        if read_manifest(path).digest != item.manifest.digest:
            msg = f"{path} was replaced by a newer one meanwhile: list again"
            raise CheckpointNotFoundError(msg)
        delete_directory(path, self._root)
        tidy(self._root)

    def _path(self, item: CheckpointItem) -> Path:
        return self._root / item.name if item.name != "." else self._root


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
            listing = list_job(self.store, self._prefix, self._cache)
            read, self._refused = read_listing(self.store, self._prefix, listing.committed)
            protected = {under(self._prefix, folder) for folder in listing.protected}
            self._items = items_of_job(self.store, read, protected)
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
        local = [
            replace(item, job=self.job, project=self.project, sync_status=SYNCING)
            for item in self.directory_part.items()
            if item.manifest.digest not in known
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


def read_listing(
    store: Store, prefix: str, committed: dict[str, bytes]
) -> tuple[dict[NodeFolder, CatalogEntry], list[str]]:
    """Parse the manifests of a listing: the entries, and why some are left out."""
    read, refused = {}, []
    for folder, data in committed.items():
        key = f"{under(prefix, folder)}/{MANIFEST}"
        parts = committed_at(key)
        if parts is None:
            continue
        where = NodeFolder(*parts)
        try:
            manifest = Manifest.from_bytes(data, f"{store.name}/{where.base}")
        except CheckpointCorruptError as error:
            refused.append(str(error))
        else:
            read[where] = CatalogEntry(where, manifest, data)
    return read, refused


def items_of_job(
    store: Store, read: dict[NodeFolder, CatalogEntry], protected: Iterable[str]
) -> list[CheckpointItem]:
    """Items of the checkpoints of one job, newest first; `protected` are key prefixes."""
    if not read:
        return []
    view = JobView(store, read, read)
    bases = set(protected)
    name_of = _names(view)
    return [
        CheckpointItem(
            project=found.location.project,
            job=found.location.job,
            node_rank=found.location.node_rank,
            name=name_of(found),
            where=found.location.base,
            manifest=found.manifest,
            protected=found.location.base in bases,
            sync_status=COMPLETE,
        )
        for found in view.checkpoints()
    ]


def _names(view: JobView) -> Callable[[CatalogEntry], str]:
    """The function that gives each checkpoint of a job its unique name."""
    owners: dict[str, int] = {}
    for found in view.checkpoints():
        rank = owners.setdefault(found.checkpoint_id, found.location.node_rank)
        owners[found.checkpoint_id] = min(rank, found.location.node_rank)

    def name_of(found: CatalogEntry) -> str:
        own, rank = found.checkpoint_id, found.location.node_rank
        return own if owners[own] == rank else f"rank-{rank}/{own}"

    return name_of
