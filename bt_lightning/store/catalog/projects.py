"""Look up committed checkpoints of a store by project, job and id, and resolve `latest`.

A `JobView` holds what one listing found. Manifests are read when they are needed, and kept.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import (
    MANIFEST,
    committed_at,
    generation_of,
    job_prefix,
    jobs_prefix,
    slug,
)
from bt_lightning.store.catalog.job_records import read_records
from bt_lightning.uri import LATEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bt_lightning.store.interface import Store

log = logging.getLogger(__name__)

_READERS = 16
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """A folder with a manifest in a store: a committed checkpoint, not read yet."""

    project: str
    job: str
    node_rank: int
    folder: str
    """Path below the node's folder `rank-<n>`: an id, or an id, `@` and a number."""

    @property
    def base(self) -> str:
        """Key prefix of the checkpoint's files."""
        return f"{job_prefix(self.project, self.job, self.node_rank)}/{self.folder}"


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """A committed checkpoint of a store."""

    location: NodeFolder
    manifest: Manifest

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's id; the folder's name, if the folder was renamed."""
        own = self.manifest.checkpoint_id
        return self.location.folder if generation_of(self.location.folder, own) is None else own

    @property
    def number(self) -> int:
        """Number of the folder among the generations of one id, from 1."""
        return generation_of(self.location.folder, self.checkpoint_id) or 1

    @property
    def newness(self) -> tuple[tuple[int, int, str], int, int]:
        """Sort key; of equally new checkpoints, the one of the lowest node is the newest."""
        return (self.manifest.order, -self.location.node_rank, self.number)


@dataclass(frozen=True, slots=True)
class CatalogEntry(ListedCheckpoint):
    """A committed checkpoint of a store whose manifest was read."""

    data: bytes
    """The content of the manifest."""


_Checkpoint = TypeVar("_Checkpoint", bound=ListedCheckpoint)


class JobView:
    """The checkpoints of one job, of all its nodes, as one listing found them.

    May be used by several threads.
    """

    def __init__(
        self,
        store: Store,
        locations: Iterable[NodeFolder],
        read: Mapping[NodeFolder, CatalogEntry | None] | None = None,
    ) -> None:
        self._store = store
        self._locations = {
            (location.node_rank, location.folder): location for location in locations
        }
        first = next(iter(self._locations.values()))
        self.project, self.job = first.project, first.job
        known = read or {}
        self._read = {
            location: known[location] for location in self._locations.values() if location in known
        }
        self._lock = threading.Lock()

    def ids(self) -> list[str]:
        """The id of each checkpoint, sorted; the same id on a later node is `rank-N/<id>`.

        Only manifests of folders with an ambiguous name are read. A damaged checkpoint is listed by
        its folder's name; an error is raised when it is opened.
        """
        ambiguous = [location for location in self._locations.values() if "@" in location.folder]
        self._load(ambiguous)
        read = self._known()
        owners: dict[str, int] = {}
        shown = set()
        for (rank, folder), location in sorted(self._locations.items()):
            checkpoint = read.get(location)
            name = folder if checkpoint is None else checkpoint.checkpoint_id
            owner = owners.setdefault(name, rank)
            shown.add(name if owner == rank else f"rank-{rank}/{name}")
        return sorted(shown)

    def children(self, path: str) -> set[str]:
        """Names directly below the folder `path` in the ids; "" is the root."""
        front = f"{path}/" if path else ""
        if path and not path.startswith("rank-"):
            begins = (location.folder.startswith(front) for location in self._locations.values())
            if not any(begins):
                return set()  # as for nearly every file: no manifest is read
        return {
            name[len(front) :].partition("/")[0] for name in self.ids() if name.startswith(front)
        }

    def checkpoints(self) -> list[CatalogEntry]:
        """The newest generation of each id of each node, newest first; damaged ones are logged."""
        self._load(self._locations.values())
        return newest_of_each(found for found in self._known().values() if found is not None)

    def latest(self) -> CatalogEntry:
        """The checkpoint of the highest step, then generation, of the fit that saved last.

        Raises:
            CheckpointNotFoundError: no checkpoint can be read.
        """
        found = self.checkpoints()
        if not found:
            msg = f"no checkpoint of {self.describe()} can be read"
            raise CheckpointNotFoundError(msg)
        return of_newest_fit(found, lambda one: one.manifest)[0]

    def created_at(self) -> str:
        """`created_at` of the oldest checkpoint that is still there; "" if none can be read."""
        return min((found.manifest.created_at for found in self.checkpoints()), default="")

    def split_path(self, path: str) -> tuple[CatalogEntry, str] | None:
        """The checkpoint that `path` begins with, and the rest of `path`; None if there is none.

        Where one id is the beginning of another, the longest one counts.
        """
        parts = path.split("/")
        for count in range(len(parts), 0, -1):
            found = self.find("/".join(parts[:count]))
            if found is not None:
                return found, "/".join(parts[count:])
        return None

    def find(self, name: str) -> CatalogEntry | None:
        """The newest checkpoint of the id `name`, on the lowest node that has it.

        `rank-N/<id>` names one node. The name of a generation's folder, `<id>@<n>`, stands for the
        newest generation of that id.

        Raises:
            CheckpointCorruptError: its manifest is damaged.
        """
        for rank in sorted({rank for rank, _ in self._locations}):
            found = self._named(rank, name)
            if found is not None:
                return found
        node, _, rest = name.partition("/")
        word, _, number = node.partition("-")
        if rest and word == "rank" and number.isascii() and number.isdigit():
            return self._named(int(number), rest)
        return None

    def name_of(self, checkpoint: CatalogEntry) -> str:
        """The name for `find`: the id, with the node's rank if a lower node has the id too."""
        own = self.find(checkpoint.checkpoint_id)
        rank = checkpoint.location.node_rank
        same = own is not None and own.location.node_rank == rank
        return checkpoint.checkpoint_id if same else f"rank-{rank}/{checkpoint.checkpoint_id}"

    def describe(self) -> str:
        """The job and the first of its checkpoints, for messages."""
        ids = sorted({folder for _, folder in self._locations})
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        has = f"{', '.join(ids[:_SHOWN])}{more}"
        return f"the job {self.job} of the project {self.project} (it has {has})"

    def _named(self, rank: int, name: str) -> CatalogEntry | None:
        found = self._newest(rank, name, 1)
        before, at, number = name.rpartition("@")
        if found is None and at and number.isascii() and number.isdigit():
            found = self._newest(rank, before, int(number))
        return found

    def _newest(self, rank: int, name: str, least: int) -> CatalogEntry | None:
        """The newest generation of the id `name`, if its number is `least` or more."""
        own = [
            location
            for (node, folder), location in self._locations.items()
            if node == rank and (generation_of(folder, name) or 0) >= 1
        ]
        for location in sorted(own, key=lambda p: generation_of(p.folder, name) or 0, reverse=True):
            checkpoint = self._open(location)
            if checkpoint is not None and checkpoint.checkpoint_id == name:
                return checkpoint if checkpoint.number >= least else None
        return None

    def _open(self, location: NodeFolder) -> CatalogEntry | None:
        with self._lock:
            known = self._read.get(location)
        if known is not None:
            return known
        found = read_checkpoint(self._store, location)
        with self._lock:
            self._read[location] = found
        return found

    def _load(self, locations: Iterable[NodeFolder]) -> None:
        """Read the manifests that were not read yet, in parallel."""
        with self._lock:
            missing = [location for location in locations if location not in self._read]
        found = read_all(self._store, missing)
        with self._lock:
            self._read = {**found, **self._read}

    def _known(self) -> dict[NodeFolder, CatalogEntry | None]:
        with self._lock:
            return dict(self._read)


def newest_of_each(found: Iterable[_Checkpoint]) -> list[_Checkpoint]:
    """Of one job's checkpoints, the newest generation of each id of each node, newest first."""
    newest: dict[tuple[int, str], _Checkpoint] = {}
    for checkpoint in found:
        key = (checkpoint.location.node_rank, checkpoint.checkpoint_id)
        if key not in newest or newest[key].number < checkpoint.number:
            newest[key] = checkpoint
    return sorted(newest.values(), key=lambda checkpoint: checkpoint.newness, reverse=True)


def list_node_folders(
    store: Store, project: str | None = None, job: str | None = None
) -> list[NodeFolder]:
    """Every folder with a manifest in a job, a project, or the whole store: one listing."""
    found = (committed_at(info.key) for info in store.list(jobs_prefix(project, job)))
    return [NodeFolder(*parts) for parts in found if parts is not None]


def list_projects(store: Store) -> list[str]:
    """Projects with a committed checkpoint, by their names in the store."""
    return sorted({location.project for location in list_node_folders(store)})


def list_jobs(store: Store, project: str) -> list[str]:
    """Jobs of a project with a committed checkpoint, by their names in the store."""
    return sorted({location.job for location in list_node_folders(store, project)})


def view_job(
    store: Store, project: str, revision: str = LATEST, *, without: str | None = None
) -> JobView:
    """List a job, or, for `latest`, the most recent job of the project: one listing.

    The most recent job is the one that started last: by its record, or without one, by its oldest
    checkpoint. With several jobs that reads each manifest and each record of the project once.
    `latest` is never the job `without`.

    Raises:
        CheckpointNotFoundError: nothing is committed there.
        StoreError: the store refused.
    """
    job = None if revision == LATEST else revision
    jobs: dict[str, list[NodeFolder]] = {}
    for location in list_node_folders(store, project, job):
        if job is not None or location.job != without:
            jobs.setdefault(location.job, []).append(location)
    if not jobs:
        where = f"{store.name}/{jobs_prefix(project, job)}"
        named = f"the job {slug(job)} of " if job is not None else ""
        msg = f"nothing is committed of {named}the project {slug(project)}: looked in {where}"
        raise CheckpointNotFoundError(msg)
    if len(jobs) == 1:
        return JobView(store, next(iter(jobs.values())))
    read = read_all(store, [location for locations in jobs.values() for location in locations])
    views = [JobView(store, locations, read) for locations in jobs.values()]
    records = read_records(store, [(view.project, view.job) for view in views])

    def began(view: JobView) -> tuple[str, str]:
        record = records.get((view.project, view.job))
        return (record.created_at if record is not None else view.created_at(), view.job)

    return max(views, key=began)


def read_checkpoint(store: Store, location: NodeFolder) -> CatalogEntry | None:
    """Read the manifest of a folder; None if it was deleted.

    Raises:
        CheckpointCorruptError: the manifest is damaged, or of a newer format.
    """
    data = store.read(f"{location.base}/{MANIFEST}")
    if data is None:
        return None
    return CatalogEntry(location, Manifest.from_bytes(data, f"{store.name}/{location.base}"), data)


def read_all(store: Store, locations: list[NodeFolder]) -> dict[NodeFolder, CatalogEntry | None]:
    """Read the manifests of folders in parallel; None for one that is damaged or deleted."""

    def read(location: NodeFolder) -> CatalogEntry | None:
        try:
            return read_checkpoint(store, location)
        except CheckpointCorruptError as error:
            log.warning("left out: %s", error)
            return None

    if len(locations) <= 1:
        return {location: read(location) for location in locations}
    with ThreadPoolExecutor(min(_READERS, len(locations))) as pool:
        return dict(zip(locations, pool.map(read, locations), strict=True))
