"""Deleting checkpoints, jobs and projects. A checkpoint's name goes first; what is protected stays.

A deletion that was killed left nothing half visible; the next one of the same job finishes it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointProtectedError,
    InvalidSettingError,
    LeaseHeldError,
)
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.download_copy import job_lease
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.manage.job_objects import is_ours
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import (
    DELETING,
    MARKER,
    PROTECTION,
    folders_of,
    job_prefix,
    jobs_prefix,
    lease_folder,
    part_name,
    slug,
    under,
)
from bt_lightning.removal_requester import Requester
from bt_lightning.retention import (
    Decision,
    KeepBest,
    KeepLatest,
    Tier,
    TierCheckpoint,
    places_decided,
)
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.catalog.removal_requests import forget_removals, request_stored_removal
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.unpublish import unpublish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.job_objects import JobObjects
    from bt_lightning.store.interface import Store


@dataclass(slots=True)
class Deletion:
    """What came of a deletion. Names of checkpoints; of a job or a project, `<job>/<name>`."""

    deleted: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The job runs: its worker deletes them with its next save."""
    kept: list[str] = field(default_factory=list)
    """Protected, or kept by the retention policy in some other way."""
    files: list[tuple[str, int]] = field(default_factory=list)
    """Of no checkpoint, with their bytes: gone with their job."""
    left: list[str] = field(default_factory=list)
    """What came to a job while it was deleted, and was not counted."""


def kept_by_rule(
    items: Sequence[CheckpointItem],
    last: int | None,
    best: Sequence[str],
    mode: Literal["min", "max"],
) -> frozenset[str]:
    """Names of those that a rule keeps: the `last` newest of each fit, and the best by each metric.

    A metric is best where it is lowest (`mode` `min`) or highest (`max`); NaN is never best.

    Raises:
        InvalidSettingError: no checkpoint has such a metric: all would go.
    """
    tier = _tier(items)
    kept: frozenset[str] = frozenset()
    for fit in {item.manifest.fit for item in items}:
        own = _tier([item for item in items if item.manifest.fit == fit])
        kept |= places_decided(own, Decision.KEEP, KeepLatest(last or 0))
    for metric in best:
        chosen = places_decided(tier, Decision.KEEP, KeepBest(metric, mode))
        if not chosen:
            msg = f"no checkpoint has the metric {metric!r}: nothing would be kept by it"
            raise InvalidSettingError(msg)
        kept |= chosen
    return kept


def kept_by_policy(items: Sequence[CheckpointItem]) -> frozenset[str]:
    """Names of those that the retention policy keeps though a person asks for their removal."""
    return places_decided(_tier(items), Decision.KEEP)


def _tier(items: Sequence[CheckpointItem]) -> Tier:
    """Checkpoints of a job that a person asks to remove; each place is a name."""
    return Tier(
        name="store",
        checkpoints=[TierCheckpoint.of(item.name, item.manifest) for item in items],
        requests={item.manifest.digest: Requester.PERSON for item in items},
        protected={item.manifest.digest for item in items if item.protected},
    )


def delete_items(source: JobCheckpoints, items: Sequence[CheckpointItem]) -> Deletion:
    """Delete checkpoints of one job where they lie: in its store, on its disk, or on both.

    What the retention policy keeps stays, and so does what was protected since it was listed.

    Raises:
        StoreError: a store refused; what was deleted by then is gone.
        CheckpointNotFoundError: another of that name came meanwhile.
    """
    kept = kept_by_policy(items)
    done = Deletion(kept=[item.name for item in items if item.name in kept])
    items = [item for item in items if item.name not in kept]
    if isinstance(source, StoreCheckpoints):
        _delete_stored(source, items, done)
    elif isinstance(source, DirectoryCheckpoints):
        for item in items:
            _delete_local(source, item, done)
    else:
        assert isinstance(source, JoinedCheckpoints)
        stored = [item for item in items if not source.only_on_disk(item)]
        _delete_stored(source.store_part, stored, done)
        ours = {item.name for item in items}.difference(done.kept, done.asked)
        gone = {item.manifest.digest for item in items if item.name in ours}
        local = Deletion()
        for item in source.directory_part.items():
            if item.manifest.digest in gone:
                _delete_local(source.directory_part, item, local)
        done.deleted += [name for name in local.deleted if name not in done.deleted]
        done.kept += [name for name in local.kept if name not in done.deleted]
    return done


def finish_deletions(source: JobCheckpoints) -> list[str]:
    """Finish what killed deletions began in a job's part of a store; names of what went.

    Nothing is done while the job runs: its worker does it when it starts.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.store_part
    if not isinstance(source, StoreCheckpoints):
        return []
    store, job = source.store, jobs_prefix(source.project, source.job)
    done = []
    for folder in sorted(_half_deleted(store, job)):
        node, _, name = folder.partition("/")
        with contextlib.suppress(LeaseHeldError), job_lease(store, under(job, node)):
            unpublish(store, under(job, node), name)
            done.append(name)
    return done


def delete_job(store: Store, project: str, job: str, counted: JobObjects) -> Deletion:
    """Delete what was `counted` of a job in a store, but for what is protected. Idempotent.

    What is ours alone (leases, records, requests) goes with it; what came since it was counted
    stays, and is told as left.

    Raises:
        CheckpointNotFoundError: it has nothing there.
        LeaseHeldError: it is running.
        StoreError: the store refused; the next call goes on.
    """
    prefix = jobs_prefix(project, job)
    keys = [info.key for info in store.list(prefix)]
    if not keys:
        msg = f"{store.name} has nothing of the job {job} of the project {project}"
        raise CheckpointNotFoundError(msg)
    done = Deletion()
    paths = [key.removeprefix(f"{prefix}/") for key in keys]
    nodes = sorted({path.partition("/")[0] for path in paths if _is_of_a_node(path)})
    for node in nodes:
        _delete_node(store, prefix, node, counted, done)
    _delete_counted(store, prefix, [p for p in paths if not _is_of_a_node(p)], counted, done)
    done.deleted = [f"{slug(job)}/{path}" for path in done.deleted]
    done.kept = [f"{slug(job)}/{path}" for path in done.kept]
    done.left = [f"{slug(job)}/{path}" for path in done.left]
    done.files = [(f"{slug(job)}/{path}", size) for path, size in done.files]
    return done


def jobs_of(store: Store, project: str) -> list[str]:
    """Every job of a project that has anything in a store, even if nothing is committed of it."""
    prefix = f"{jobs_prefix(project)}/"
    keys = (info.key for info in store.list(jobs_prefix(project)))
    return sorted({key.removeprefix(prefix).partition("/")[0] for key in keys})


def _is_of_a_node(path: str) -> bool:
    node, slash, _ = path.partition("/")
    word, _, rank = node.partition("-")
    return bool(slash) and word == "rank" and rank.isascii() and rank.isdigit()


def _delete_node(store: Store, job: str, node: str, counted: JobObjects, done: Deletion) -> None:
    prefix = under(job, node)
    try:
        with job_lease(store, prefix):
            kept = [f"{lease_folder(node)}/"]  # goes last, with the lease itself
            for folder in sorted(list_job(store, prefix).committed):
                path = f"{node}/{folder}"
                if path not in counted.checkpoints:
                    done.left.append(path)
                elif unpublish(store, prefix, folder):
                    done.deleted.append(path)
                    continue
                else:
                    done.kept.append(path)
                kept.append(f"{path}/")
            paths = [info.key.removeprefix(f"{job}/") for info in store.list(prefix)]
            beside = [path for path in paths if not path.startswith(tuple(kept))]
            _delete_counted(store, job, beside, counted, done)
    except LeaseHeldError as error:
        msg = f"{error}. Stop the job before deleting it"
        raise LeaseHeldError(msg) from error


def _delete_counted(
    store: Store, job: str, paths: Sequence[str], counted: JobObjects, done: Deletion
) -> None:
    """Delete, of the objects at `paths`, those of no checkpoint that were counted, and ours."""
    known = counted.files.keys() | counted.going  # a folder that is of no node is no checkpoint's
    going = []
    for path in paths:
        marks = path.rpartition("/")[2] in {MARKER, part_name(MARKER), PROTECTION}
        if marks or is_ours(path) or not known.isdisjoint((path, *folders_of(path))):
            going.append(path)
        else:
            done.left.append(path)
    store.delete([under(job, path) for path in going])
    done.files += [(path, counted.files[path]) for path in going if path in counted.files]


def _delete_stored(
    source: StoreCheckpoints, items: Sequence[CheckpointItem], done: Deletion
) -> None:
    by_node: dict[int, list[CheckpointItem]] = defaultdict(list)
    for item in items:
        by_node[item.node_rank].append(item)
    for rank, own in by_node.items():
        prefix = job_prefix(source.project, source.job, rank)
        for item in own:  # first: a restart of the job must not publish it anew from its disk
            request_stored_removal(source.store, prefix, item.manifest.digest, Requester.PERSON)
        try:
            with job_lease(source.store, prefix):
                _delete_ids(source.store, prefix, own, done)
        except LeaseHeldError:
            done.asked += [item.name for item in own]
    source.forget()


def _delete_ids(store: Store, prefix: str, items: Sequence[CheckpointItem], done: Deletion) -> None:
    """Delete every generation of the items."""
    listing = list_job(store, prefix)
    ids = {item.manifest.checkpoint_id: item for item in items}
    kept: set[str] = set()
    for folder, data in listing.committed.items():
        try:
            name = Manifest.from_bytes(data, folder).checkpoint_id
        except CheckpointCorruptError:
            continue  # not one of those that were listed
        if name in ids and not unpublish(store, prefix, folder):
            kept.add(name)
    forget_removals(store, prefix, frozenset(ids[name].manifest.digest for name in kept))
    for name, item in ids.items():
        (done.kept if name in kept else done.deleted).append(item.name)


def _half_deleted(store: Store, prefix: str) -> list[str]:
    listing = list_job(store, prefix)
    return [
        folder
        for folder in listing.unfinished - listing.committed.keys()
        if read_any(store, f"{under(prefix, folder)}/{MARKER}") == DELETING
    ]


def _delete_local(source: DirectoryCheckpoints, item: CheckpointItem, done: Deletion) -> None:
    try:
        source.delete(item)
    except CheckpointProtectedError:
        done.kept.append(item.name)
    else:
        done.deleted.append(item.name)
