"""Which checkpoints somebody means: from options and the environment to a shelf."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.manage.job_checkpoints import (
    CheckpointItem,
    DirectoryCheckpoints,
    JobCheckpoints,
    JoinedCheckpoints,
    StoreCheckpoints,
    items_of_job,
    read_listing,
)
from bt_lightning.manage.job_objects import JobObjects, job_objects
from bt_lightning.path_layout import MANIFEST, committed_at, jobs_prefix, node_of, slug, under
from bt_lightning.settings import Settings
from bt_lightning.store.catalog.bt_url_tree import open_bt_store
from bt_lightning.store.catalog.job_records import read_records
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.catalog.manifest_cache import user_cache
from bt_lightning.uri import LATEST, is_bt, parse

_SHOWN = 200

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.job_record import JobRecord
    from bt_lightning.store.catalog.projects import CatalogEntry, NodeFolder
    from bt_lightning.store.interface import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked for. None where nothing was said."""

    url: str | None = None
    """`bt://project[@job]`, or a directory."""
    directory: str | None = None
    store: str | None = None
    project: str | None = None
    job: str | None = None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job with checkpoints or other files in a store, or with a record of its runner."""

    project: str
    job: str
    items: tuple[CheckpointItem, ...]
    """Newest first."""
    refused: tuple[str, ...] = ()
    record: JobRecord | None = None
    """Of node 0, if a runner wrote one."""
    holdings: JobObjects = field(default_factory=JobObjects)

    @property
    def oldest(self) -> str:
        """`created_at` of the oldest checkpoint that is still there."""
        return min((item.manifest.created_at for item in self.items), default="")

    @property
    def began(self) -> str:
        """As its record says; without one, what is nearest to it: the oldest checkpoint."""
        return self.oldest if self.record is None else self.record.created_at

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.manifest.size for item in self.items)


def open_job(target: Target, notice: Callable[[str], None]) -> JobCheckpoints:
    """The shelf that is meant; `notice` is told if it had to be chosen among several.

    A URL counts before a store, a store before a directory; of a store without a named job, the job
    that the directory publishes to, else the one that began last.

    Raises:
        InvalidSettingError: nothing is named, or it is no directory, URL or store.
        CheckpointNotFoundError: the store has no such project or job.
        StoreError: the store refused.
    """
    if target.url and not is_bt(target.url):
        return DirectoryCheckpoints(directory_of(target.url))
    settings = Settings.from_environ(os.environ)
    if target.url:
        uri = parse(target.url)
        store = open_bt_store(target.store, None)
        job = None if uri.revision == LATEST else uri.revision
        return _newest(store, uri.project, job, notice)
    if not target.store:
        if target.directory:
            return DirectoryCheckpoints(directory_of(target.directory))
        msg = "name a directory with --dir (or BT_CHECKPOINT_DIR), or a store with --store"
        raise InvalidSettingError(msg)
    return _stored(target, settings, notice)


def _stored(target: Target, settings: Settings, notice: Callable[[str], None]) -> JobCheckpoints:
    store, cache = open_bt_store(target.store, None), user_cache(os.environ)
    if target.job is None and target.directory:
        root = Path(target.directory).expanduser().resolve()
        own = job_of(settings, root)
        stored = StoreCheckpoints(store, target.project or own.project, own.job, cache)
        lost = not root.is_dir()  # another machine, or one that lost its disk
        return stored if lost else JoinedCheckpoints(stored, DirectoryCheckpoints(root))
    within, named = target.project or settings.project, target.job or settings.job
    if within and named:
        shelf = StoreCheckpoints(store, within, named, cache)
        prefix = jobs_prefix(within, named)
        if not shelf.items() and not shelf.refused and next(iter(store.list(prefix)), None) is None:
            msg = f"{store.name} has nothing of a job {named} of the project {within}"
            raise CheckpointNotFoundError(msg)
        return shelf
    return _newest(store, within, named, notice)


def open_every_job(target: Target) -> list[JobCheckpoints]:
    """The shelf of each job of the store, or of the project that is named; newest job first.

    Raises as `open_job`.
    """
    if not target.store:
        msg = "all jobs are those of a store: name it with --store (or BT_STORE_URL)"
        raise InvalidSettingError(msg)
    store = open_bt_store(target.store, None)
    shelves: list[JobCheckpoints] = []
    for job in survey(store, target.project):
        if not (job.items or job.refused):
            continue  # its runner has begun, and nothing is committed
        shelf = StoreCheckpoints(store, job.project, job.job, user_cache(os.environ))
        shelf.know(job.items, job.refused)
        shelves.append(shelf)
    return shelves


def project_of(store: Store, project: str | None, job: str) -> str:
    """The project of a job, if it is not said: the only one of the store that has such a job.

    Raises:
        CheckpointNotFoundError: none has.
        InvalidSettingError: several have.
    """
    if project is not None:
        return project
    keys = (info.key.split("/") for info in store.list(jobs_prefix()))
    found = sorted({key[1] for key in keys if key[2:4] == ["jobs", slug(job)]})
    if not found:
        msg = f"{store.name} has nothing of a job {job}"
        raise CheckpointNotFoundError(msg)
    if len(found) > 1:
        msg = f"the job {job} is in the projects {', '.join(found)}: name one with --project"
        raise InvalidSettingError(msg)
    return found[0]


def split_bt_url(target: Target) -> tuple[Target, str | None]:
    """`target` with the URL of its job only, and the checkpoint that the URL names, if any.

    Raises:
        InvalidSettingError: it is no such URL.
    """
    if not target.url or not is_bt(target.url):
        return target, None
    uri = parse(target.url)
    return replace(target, url=str(replace(uri, path=""))), uri.path or None


def directory_named(target: Target) -> Path:
    """The directory that is named.

    Raises:
        InvalidSettingError: none is, or there is none.
    """
    if not target.directory:
        msg = "name a directory with --dir (or BT_CHECKPOINT_DIR)"
        raise InvalidSettingError(msg)
    return directory_of(target.directory)


def directory_of(text: str) -> Path:
    """The directory of that name.

    Raises:
        InvalidSettingError: there is none.
    """
    try:
        path = Path(text).expanduser().resolve()
        known = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, nobody's home
        msg = f"{text[:_SHOWN]} is no directory: {error}"
        raise InvalidSettingError(msg) from error
    if not known:
        msg = f"{path} is no directory"
        raise InvalidSettingError(msg)
    return path


def survey(store: Store, project: str | None = None, job: str | None = None) -> list[StoredJob]:
    """Every job of a store, or of a project of it, the one that began last first: one listing.

    Manifests that the user's cache has are not read again.
    """
    prefix = jobs_prefix(project, job if project else None)
    listing = list_job(store, prefix, user_cache(os.environ))
    read, refused = read_listing(store, prefix, listing.committed)
    protected = {under(prefix, folder) for folder in listing.protected}
    jobs: dict[tuple[str, str], dict[NodeFolder, CatalogEntry]] = {}
    for folder in listing.committed:
        parts = committed_at(f"{under(prefix, folder)}/{MANIFEST}")
        if parts is not None and (job is None or parts[1] == slug(job)):
            jobs[parts[0], parts[1]] = {}
    for place, checkpoint in read.items():
        if (place.project, place.job) in jobs:
            jobs[place.project, place.job][place] = checkpoint
    nodes = [node_of(under(prefix, folder)) for folder in listing.records]
    known = {node[:2] for node in nodes if node is not None and (job in {None, node[1]})}
    records = read_records(store, sorted(known))
    found = []
    held = {
        names: own
        for names, own in job_objects(listing, prefix).items()
        if job is None or names[1] == slug(job)
    }
    for names in {**jobs, **records, **held}:
        mine = tuple(reason for reason in refused if f"{jobs_prefix(*names)}/" in reason)
        items = tuple(items_of_job(store, jobs.get(names, {}), protected))
        own = held.get(names, JobObjects())
        found.append(StoredJob(*names, items, mine, records.get(names), own))
    return sorted(found, key=lambda j: (j.began, j.job), reverse=True)


def _newest(
    store: Store, project: str | None, job: str | None, notice: Callable[[str], None]
) -> StoreCheckpoints:
    found = [one for one in survey(store, project, job) if one.items or one.refused]
    if not found:
        of = f" of the project {project}" if project else f" of the job {job}" if job else ""
        msg = f"nothing is committed{of} in {store.name}"
        raise CheckpointNotFoundError(msg)
    chosen = found[0]
    if len(found) > 1:
        notice(
            f"{len(found)} jobs: this is {chosen.job} of {chosen.project}, which began last."
            " Name another with --job-id"
        )
    shelf = StoreCheckpoints(store, chosen.project, chosen.job, user_cache(os.environ))
    shelf.know(chosen.items, chosen.refused)
    return shelf
