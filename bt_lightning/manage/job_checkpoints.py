"""Where the checkpoints of a job lie: a directory, or the job's part of a store."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir import protection as on_disk
from bt_lightning.localdir.atomic_directory import delete_directory, tidy
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.localdir.local_checkpoints import list_committed, read_manifest
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, PROTECTION, committed_at, jobs_prefix, under
from bt_lightning.protection_record import Protection
from bt_lightning.settings import Settings
from bt_lightning.store.catalog import protection as in_store
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
_NEAR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointItem:
    """One committed checkpoint of a shelf."""

    project: str
    job: str
    node_rank: int
    name: str
    """What `JobCheckpoints.find` takes: its id, or `rank-N/<id>` where another node has that id."""
    where: str
    """Key prefix in the store, or the directory."""
    manifest: Manifest
    protected: bool
    sync_status: str | None = None
    """`COMPLETE`: durable in the store. `SYNCING`: on this disk only, so far. None: not known."""


class JobCheckpoints(Protocol):
    """The checkpoints of a job. Used by one thread; what `place` returns, by several."""

    name: str
    """Directory or URL, for messages."""
    project: str
    job: str

    @property
    def refused(self) -> Sequence[str]:
        """Why something that looks like a checkpoint is left out; known after `items`."""

    def items(self) -> list[CheckpointItem]:
        """All of them, newest first."""

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """Where its bytes are read."""

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """A URL of one of its files; signed, and so a secret, where the store signs."""

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Who protects it, and why; None if nobody does."""

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Keep it from being deleted."""

    def unprotect(self, item: CheckpointItem) -> None:
        """Let it be deleted again."""


def find(shelf: JobCheckpoints, name: str) -> CheckpointItem:
    """The item of that name; `latest` is the newest.

    Raises:
        CheckpointNotFoundError: there is none; the message names those that are called alike.
    """
    items = shelf.items()
    if name == "latest" and items:
        return items[0]
    for item in items:
        if name in {item.name, f"rank-{item.node_rank}/{item.name}"}:
            return item
    names = [item.name for item in items]
    near = difflib.get_close_matches(name, names, _NEAR, 0.3) or names[:_NEAR]
    has = f"it has {', '.join(near)}" if len(near) == len(names) else f"near: {', '.join(near)}"
    msg = f"{shelf.name} has no checkpoint {name!r}" + (f" ({has})" if near else ": it is empty")
    raise CheckpointNotFoundError(msg)


class DirectoryCheckpoints:
    """What is committed under a directory."""

    def __init__(self, root: Path) -> None:
        self.name, self._root = str(root), root
        job = job_of(Settings.from_environ(os.environ), root)
        self.project, self.job, self._rank = job.project, job.job, job.node_rank
        self._refused: list[str] = []
        self.unread: list[str] = []
        """Those of `refused` that tell of a folder that could not be looked into."""

    @property
    def refused(self) -> list[str]:
        """Reasons, of the last `items`."""
        return self._refused

    def items(self) -> list[CheckpointItem]:
        """Read from the disk at each call; of one id the newest generation."""
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
                protected=on_disk.is_protected_local(checkpoint.path),
            )
            items.setdefault(name, item)
        return list(items.values())

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A directory; close it after use."""
        return DirectoryReader(self._path(item))

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:  # noqa: ARG002 - has no end
        """A file:// URL."""
        return (self._path(item) / path).resolve().as_uri()

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Read from the disk."""
        return on_disk.protection_of(self._path(item))

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Written to the disk, durable."""
        on_disk.protect_local(self._path(item), protection)

    def unprotect(self, item: CheckpointItem) -> None:
        """Taken from the disk."""
        on_disk.unprotect_local(self._path(item))

    def delete(self, item: CheckpointItem) -> None:
        """Delete it from the disk, unless it is protected or was replaced since `items`.

        Raises:
            CheckpointProtectedError: somebody protected it.
            CheckpointNotFoundError: it is not there, or another is.
        """
        path = self._path(item)
        said = self.protection(item)
        if said is not None:
            raise in_store.protected_error(item.name, said)
        if read_manifest(path).digest != item.manifest.digest:
            msg = f"{path} was replaced by a newer one meanwhile: list again"
            raise CheckpointNotFoundError(msg)
        delete_directory(path, self._root)
        tidy(self._root)

    def _path(self, item: CheckpointItem) -> Path:
        return self._root / item.name if item.name != "." else self._root


class StoreCheckpoints:
    """What is committed in a job's part of a store, of all its nodes."""

    def __init__(self, store: Store, project: str, job: str, cache: Path | None = None) -> None:
        self.store, self._cache = store, cache
        self._prefix = jobs_prefix(project, job)
        self.project, self.job = project, job
        self.name = f"{store.name}/{self._prefix}"
        self._refused: list[str] = []
        self._items: list[CheckpointItem] | None = None

    @property
    def refused(self) -> list[str]:
        """Reasons, of the last look."""
        return self._refused

    def items(self) -> list[CheckpointItem]:
        """One listing, at the first call, and the manifests that the cache does not have."""
        if self._items is None:
            listing = list_job(self.store, self._prefix, self._cache)
            read, self._refused = read_listing(self.store, self._prefix, listing.committed)
            protected = {under(self._prefix, folder) for folder in listing.protected}
            self._items = items_of_job(self.store, read, protected)
        return self._items

    def know(self, items: Iterable[CheckpointItem], refused: Iterable[str]) -> None:
        """Take over what a listing of more than this job found."""
        self._items, self._refused = list(items), list(refused)

    def forget(self) -> None:
        """Look again at the next call."""
        self._items = None

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """The folder in the store."""
        return StoreReader(self.store, "", item.where)

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """As the store signs it."""
        return self.store.sign(f"{item.where}/{path}", expires_s)

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Read from the store."""
        data = read_any(self.store, f"{item.where}/{PROTECTION}")
        return None if data is None else Protection.from_bytes(data)

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Written to the store."""
        in_store.protect_stored(self.store, item.where, protection)
        self.forget()

    def unprotect(self, item: CheckpointItem) -> None:
        """Taken from the store."""
        in_store.unprotect_stored(self.store, item.where)
        self.forget()


class JoinedCheckpoints:
    """A job's part of a store, and the directory that it is published from, as one."""

    def __init__(self, store: StoreCheckpoints, directory: DirectoryCheckpoints) -> None:
        self.store_shelf, self.directory_shelf = store, directory
        self.name, self.project, self.job = store.name, store.project, store.job
        self._local: set[str] = set()

    @property
    def refused(self) -> list[str]:
        """Of both."""
        return [*self.store_shelf.refused, *self.directory_shelf.refused]

    def items(self) -> list[CheckpointItem]:
        """What the store has, and what only the disk has yet."""
        stored = self.store_shelf.items()
        known = {item.manifest.digest for item in stored}
        local = [
            replace(item, job=self.job, project=self.project, sync_status=SYNCING)
            for item in self.directory_shelf.items()
            if item.manifest.digest not in known
        ]
        self._local = {item.where for item in local}
        return sorted([*local, *stored], key=lambda item: item.manifest.order, reverse=True)

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """In the store, if it is there."""
        return self._holding(item).reader(item)

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """In the store, if it is there."""
        return self._holding(item).url(item, path, expires_s)

    def protection(self, item: CheckpointItem) -> Protection | None:
        """In the store, if it is there."""
        return self._holding(item).protection(item)

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """In the store, if it is there."""
        self._holding(item).protect(item, protection)

    def unprotect(self, item: CheckpointItem) -> None:
        """In the store, if it is there."""
        self._holding(item).unprotect(item)

    def only_on_disk(self, item: CheckpointItem) -> bool:
        """Whether the store does not have it yet, as of the last `items`."""
        return item.where in self._local

    def _holding(self, item: CheckpointItem) -> JobCheckpoints:
        return self.directory_shelf if self.only_on_disk(item) else self.store_shelf


def read_listing(
    store: Store, prefix: str, committed: dict[str, bytes]
) -> tuple[dict[NodeFolder, CatalogEntry], list[str]]:
    """The checkpoints whose manifests were found, and why some of them are left out."""
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
    """What each checkpoint of a job is found by."""
    owners: dict[str, int] = {}
    for found in view.checkpoints():
        rank = owners.setdefault(found.checkpoint_id, found.location.node_rank)
        owners[found.checkpoint_id] = min(rank, found.location.node_rank)

    def name_of(found: CatalogEntry) -> str:
        own, rank = found.checkpoint_id, found.location.node_rank
        return own if owners[own] == rank else f"rank-{rank}/{own}"

    return name_of
