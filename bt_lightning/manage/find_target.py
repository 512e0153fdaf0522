"""The checkpoints that options and the environment name, and the jobs of a store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.job_choice import name_of_path
from bt_lightning.late_files import is_distant
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.manage.default_directory import DEFAULT_DIRECTORY, default_directory
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import (
    JoinedCheckpoints,
    StoreCheckpoints,
    checkpoints_by_job,
    items_of_job,
)
from bt_lightning.manage.job_objects import JobObjects, job_objects
from bt_lightning.path_layout import jobs_prefix, node_of, slug, under
from bt_lightning.settings import Settings
from bt_lightning.store.catalog.bt_url_tree import open_bt_store
from bt_lightning.store.catalog.cache_folder import user_cache
from bt_lightning.store.catalog.job_records import read_records
from bt_lightning.store.catalog.jobs_of_path import names_of_path
from bt_lightning.store.catalog.listed_manifests import list_manifests
from bt_lightning.uri import LATEST, is_bt, parse

_MAX_SHOWN = 200

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.job_record import JobRecord
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.store.interface import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the options name; None where an option is not given."""

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
    """The record of node 0, if a runner wrote one."""
    objects: JobObjects = field(default_factory=JobObjects)

    @property
    def oldest(self) -> str:
        """`created_at` of the oldest checkpoint that is still there."""
        return min((item.manifest.created_at for item in self.items), default="")

    @property
    def began(self) -> str:
        """Start of the job by its record; without one, the time of the oldest checkpoint."""
        return self.oldest if self.record is None else self.record.created_at

    @property
    def size(self) -> int:
        """Bytes of all files of its checkpoints."""
        return sum(item.manifest.size for item in self.items)


def open_job(target: Target, notice: Callable[[str], None]) -> JobCheckpoints:
    """Open the checkpoints of the job that is named; called by the command line.

    A URL goes before a store, a store before a directory. In a store without a named job, this is
    the job that the directory publishes to, else the one that began last. With neither, it is the
    directory in `./bt_checkpoints` that changed last. `notice` is called with a line for people if
    it was chosen among several.

    Raises:
        InvalidSettingError: nothing is named, or the name is no directory, URL or store.
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
        return _open_newest(store, uri.project, job, notice)
    if not target.store:
        if target.directory:
            return DirectoryCheckpoints(directory_of(target.directory))
        if (by_default := _by_default(target.job or settings.job, notice)) is not None:
            return DirectoryCheckpoints(by_default)
        msg = (
            "name a directory with --dir (or BT_CHECKPOINT_DIR), or a store with --store: nothing"
            f" is saved in ./{DEFAULT_DIRECTORY}"
        )
        raise InvalidSettingError(msg)
    return _open_in_store(target, settings, notice)


def _open_in_store(
    target: Target, settings: Settings, notice: Callable[[str], None]
) -> JobCheckpoints:
    store, cache = open_bt_store(target.store, None), user_cache(os.environ)
    if target.job is None and target.directory:
        root = Path(target.directory).expanduser().resolve()
        own = job_of(settings, root)
        project, is_missing = target.project or own.project, not root.is_dir()
        job = own.job
        if is_missing and not settings.job:  # another machine, or one that lost its disk
            began_there = names_of_path(store, project, name_of_path(os.fsencode(root)))
            job = (began_there or [job])[0]
        stored = StoreCheckpoints(store, project, job, cache)
        return stored if is_missing else JoinedCheckpoints(stored, DirectoryCheckpoints(root))
    within, named = target.project or settings.project, target.job or settings.job
    if within and named:
        source = StoreCheckpoints(store, within, named, cache)
        prefix = jobs_prefix(within, named)
        if (
            not source.items()
            and not source.refused
            and next(iter(store.list(prefix)), None) is None
        ):
            msg = f"{store.name} has nothing of a job {named} of the project {within}"
            raise CheckpointNotFoundError(msg)
        return source
    return _open_newest(store, within, named, notice)


def open_every_job(target: Target) -> list[JobCheckpoints]:
    """Open the checkpoints of each job of the store, or of the named project; newest job first.

    Raises as `open_job`.
    """
    if not target.store:
        msg = "all jobs are those of a store: name it with --store (or BT_STORE_URL)"
        raise InvalidSettingError(msg)
    store = open_bt_store(target.store, None)
    sources: list[JobCheckpoints] = []
    for job in find_jobs(store, target.project, with_objects=False):
        if not (job.items or job.refused):
            continue  # its runner has begun, but nothing is committed
        source = StoreCheckpoints(store, job.project, job.job, user_cache(os.environ))
        source.take_over(job.items, job.refused)
        sources.append(source)
    return sources


def project_of(store: Store, project: str | None, job: str) -> str:
    """`project`, or if that is None, the only project of the store with a job of that id.

    Raises:
        CheckpointNotFoundError: no project has such a job.
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
        InvalidSettingError: `target.url` is no valid `bt://` URL.
    """
    if not target.url or not is_bt(target.url):
        return target, None
    uri = parse(target.url)
    return replace(target, url=str(replace(uri, path=""))), uri.path or None


def directory_named(target: Target, notice: Callable[[str], None]) -> Path:
    """The directory that the options name, else the one in `./bt_checkpoints` that changed last.

    `notice` is called with a line for people if that is one of several.

    Raises:
        InvalidSettingError: they name none and there is none, or it does not exist.
    """
    if target.directory:
        return directory_of(target.directory)
    if (by_default := _by_default(target.job, notice)) is not None:
        return by_default
    msg = (
        "name a directory with --dir (or BT_CHECKPOINT_DIR): nothing is saved in"
        f" ./{DEFAULT_DIRECTORY}"
    )
    raise InvalidSettingError(msg)


def _by_default(job: str | None, notice: Callable[[str], None]) -> Path | None:
    found, number = default_directory(Path.cwd(), job)
    if found is not None and number > 1:
        notice(
            f"{number} directories in ./{DEFAULT_DIRECTORY}: this is {found.name}, which changed"
            " last. Name another with --dir"
        )
    return found


def directory_of(text: str) -> Path:
    """The absolute path of the directory `text`.

    Raises:
        InvalidSettingError: there is no such directory.
    """
    try:
        path = Path(text).expanduser().resolve()
        known = path.is_dir()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long, a loop of links, an unknown user
        msg = f"{text[:_MAX_SHOWN]} is no directory: {error}"
        raise InvalidSettingError(msg) from error
    if not known:
        msg = f"{path} is no directory"
        raise InvalidSettingError(msg)
    return path


def find_jobs(
    store: Store, project: str | None = None, job: str | None = None, *, with_objects: bool = True
) -> list[StoredJob]:
    """The jobs of a store, of a project, or of that id; the latest first. One listing.

    Manifests in the user's cache are not read again. Without `with_objects`, the jobs have no
    `objects`, and those that have nothing else are left out.
    """
    prefix = jobs_prefix(project, job if project else None)
    listed = list_manifests(store, prefix, user_cache(os.environ))
    listing = listed.listing
    checkpoints = checkpoints_by_job(listed)
    protected = {under(prefix, folder) for folder in listing.protected}
    nodes = [node_of(under(prefix, folder)) for folder in listing.records]
    known = {node[:2] for node in nodes if node is not None and job in {None, node[1]}}
    records = read_records(store, sorted(known))
    objects = job_objects(listing, prefix) if with_objects else {}
    found = []
    for own in {**checkpoints, **records, **objects}:
        if job is not None and own[1] != slug(job):
            continue
        within = f"{jobs_prefix(*own)}/"
        refused = tuple(reason for reason in listed.refused if within in reason)
        items = tuple(items_of_job(checkpoints.get(own, ()), protected))
        own_objects = objects.get(own, JobObjects())
        found.append(StoredJob(*own, items, refused, records.get(own), own_objects))
    return sorted(found, key=lambda j: (j.began, j.job), reverse=True)


def _open_newest(
    store: Store, project: str | None, job: str | None, notice: Callable[[str], None]
) -> StoreCheckpoints:
    jobs = find_jobs(store, project, job, with_objects=False)
    found = [one for one in jobs if one.items or one.refused]
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
    source = StoreCheckpoints(store, chosen.project, chosen.job, user_cache(os.environ))
    if not any(is_distant(item.manifest.files) for item in chosen.items):
        source.take_over(chosen.items, chosen.refused)
    return source
