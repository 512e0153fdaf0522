"""The jobs that a user may switch to: of the same store, or of directories beside this one."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manage.default_directory import is_used
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.find_target import find_jobs
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.store.catalog.cache_folder import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manage.checkpoint_items import JobCheckpoints
    from bt_lightning.manage.find_target import StoredJob
    from bt_lightning.store.interface import Store


@dataclass(frozen=True, slots=True)
class JobBeside:
    """A job with what there is of it, and how to open it."""

    project: str
    job: str
    number: int
    """Checkpoints."""
    size: int
    """Bytes of them."""
    newest: str
    """`created_at` of the newest checkpoint; empty if there is none."""
    step: int | None
    """The highest one."""
    status: str
    """Of its runner's record; empty if it has none."""
    open: Callable[[], JobCheckpoints]


def jobs_beside(source: JobCheckpoints) -> list[JobBeside]:
    """The jobs of the store of `source`, or the directories beside it; the latest first.

    Raises:
        StoreError, OSError: they cannot be listed.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.store_part
    if isinstance(source, StoreCheckpoints):
        store = source.store
        return [_stored(store, job) for job in find_jobs(store)]
    assert isinstance(source, DirectoryCheckpoints)
    root = source.root
    beside = [path for path in root.parent.iterdir() if path != root and is_used(path)]
    found = [_local(DirectoryCheckpoints(path)) for path in (root, *beside)]
    return sorted(found, key=lambda job: job.newest, reverse=True)


def for_another_thread(source: JobCheckpoints) -> JobCheckpoints:
    """The same checkpoints, as they were listed, for use by another thread."""
    twin = copy.copy(source)
    if isinstance(twin, JoinedCheckpoints):
        twin.store_part = copy.copy(twin.store_part)
        twin.directory_part = copy.copy(twin.directory_part)
    return twin


def listed_again(source: JobCheckpoints) -> JobCheckpoints:
    """The same checkpoints for another thread, to be listed anew by its `items`."""
    twin = for_another_thread(source)
    if isinstance(twin, JoinedCheckpoints):
        twin.store_part.forget()
    elif isinstance(twin, StoreCheckpoints):
        twin.forget()
    return twin


def _stored(store: Store, job: StoredJob) -> JobBeside:
    def opened() -> JobCheckpoints:
        return StoreCheckpoints(store, job.project, job.job, user_cache(os.environ))

    return JobBeside(
        job.project,
        job.job,
        len(job.items),
        job.size,
        max((item.manifest.created_at for item in job.items), default=""),
        max((item.manifest.step for item in job.items), default=None),
        job.record.status if job.record is not None else "",
        opened,
    )


def _local(source: DirectoryCheckpoints) -> JobBeside:
    manifests = [one.manifest for one in list_committed(source.root)[0]]
    return JobBeside(
        source.project,
        source.root.name,
        len(manifests),
        sum(manifest.size for manifest in manifests),
        max((manifest.created_at for manifest in manifests), default=""),
        max((manifest.step for manifest in manifests), default=None),
        "",
        lambda: source,
    )
