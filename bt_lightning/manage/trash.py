"""The trash: checkpoints set aside for some days before they are deleted.

On a disk they are renamed; in a store the server copies them, and they are deleted at their old
place. No list or load finds them there. Expired ones are deleted by the next call for their job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    InvalidSettingError,
    LeaseHeldError,
)
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.list_and_verify_checkpoints import manifest_directories, read_manifest
from bt_lightning.localdir.rename_noreplace import rename_new
from bt_lightning.manage.delete import Deletion, delete_items, kept_by_policy
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.download_copy import job_lease
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.path_layout import DOT_DIR, MANIFEST, job_prefix, trash_folder, under
from bt_lightning.store.catalog.removal_requests import forget_removals
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.publish import Base, copy_checkpoint
from bt_lightning.store.transfer.unpublish import unpublish

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

_DAY_S = 24 * 3600
_LOCAL = "trashed"


@dataclass(frozen=True, slots=True)
class Trashed:
    """One checkpoint in the trash."""

    name: str
    node_rank: int
    expires: int
    """Time of deletion, in seconds of the epoch."""
    where: str
    """Key prefix in the store, or directory."""
    size: int
    """Bytes of its files."""


def trash_items(source: JobCheckpoints, items: Sequence[CheckpointItem], days: float) -> Deletion:
    """Move checkpoints to the trash for so many days; protected ones stay.

    Raises:
        LeaseHeldError: the job runs, and holds its store.
        InvalidSettingError: one of them is only in the directory, not yet in the store.
        StoreError, OSError: not all were moved; none is lost.
    """
    expires = int(time.time() + days * _DAY_S)
    kept = kept_by_policy(items)
    free = [i for i in items if i.name not in kept and source.protection(i) is None]
    done = Deletion(kept=[item.name for item in items if item not in free])
    if isinstance(source, JoinedCheckpoints):
        local = [item.name for item in free if source.only_on_disk(item)]
        if local:
            msg = f"the store does not have {', '.join(local)} yet: put aside with --dir alone"
            raise InvalidSettingError(msg)
        source = source.store_part
    if isinstance(source, StoreCheckpoints):
        for item in free:
            _copy_aside(source, item, expires)
        gone = delete_items(source, free)
        done.deleted, done.asked, done.kept = gone.deleted, gone.asked, done.kept + gone.kept
    else:
        assert isinstance(source, DirectoryCheckpoints)
        for item in free:
            source.check_movable(item)
            target = Path(source.name) / DOT_DIR / _LOCAL / str(expires) / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            rename_new(Path(item.where), target)
            done.deleted.append(item.name)
    return done


def trashed(source: JobCheckpoints) -> list[Trashed]:
    """The trash of a job, the first to expire first. One listing."""
    if isinstance(source, JoinedCheckpoints):
        source = source.store_part
    found = _stored(source) if isinstance(source, StoreCheckpoints) else _local(Path(source.name))
    return sorted(found, key=lambda one: (one.expires, one.name))


def restore(source: JobCheckpoints, name: str) -> Trashed:
    """Bring back the checkpoint of that name that was moved to the trash last.

    Raises:
        CheckpointNotFoundError: the trash has none of that name.
        CheckpointExistsError: the directory has another one of that name by now.
        LeaseHeldError: the job runs.
        StoreError: the store refused.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.store_part
    named = [one for one in trashed(source) if one.name == name]
    if not named:
        msg = f"{source.name} has put no {name} aside"
        raise CheckpointNotFoundError(msg)
    one = named[-1]
    if isinstance(source, StoreCheckpoints):
        reader = StoreReader(source.store, "", one.where)
        prefix = job_prefix(source.project, source.job, one.node_rank)
        with job_lease(source.store, prefix) as lease:
            forget_removals(source.store, prefix, frozenset({reader.manifest.digest}))
            copy_checkpoint(reader, source.store, prefix, lease, Base(one.where, reader.manifest))
            unpublish(source.store, "", one.where)
        source.forget()
    else:
        final = Path(source.name) / name
        if final.exists():
            msg = f"{final} is there: move it first"
            raise CheckpointExistsError(msg)
        final.parent.mkdir(parents=True, exist_ok=True)
        rename_new(Path(one.where), final)
    return one


def empty(source: JobCheckpoints, *, before: float | None = None) -> list[Trashed]:
    """Delete the trash for good: all of it, or what expires before `before`, in epoch seconds.

    Checkpoints of a running job stay.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.store_part
    gone = [one for one in trashed(source) if before is None or one.expires < before]
    if isinstance(source, StoreCheckpoints):
        return _empty_store(source, gone)
    for one in gone:
        delete_directory(Path(one.where), Path(source.name))
    return gone


def _copy_aside(source: StoreCheckpoints, item: CheckpointItem, expires: int) -> None:
    prefix = job_prefix(source.project, source.job, item.node_rank)
    aside = under(trash_folder(prefix), str(expires))
    reader = StoreReader(source.store, "", item.where)
    with job_lease(source.store, prefix) as lease:
        copy_checkpoint(reader, source.store, aside, lease, Base(item.where, reader.manifest))


def _empty_store(source: StoreCheckpoints, gone: Iterable[Trashed]) -> list[Trashed]:
    done = []
    for one in gone:
        try:
            with job_lease(source.store, job_prefix(source.project, source.job, one.node_rank)):
                unpublish(source.store, "", one.where)
        except LeaseHeldError:
            continue  # the next call finds it again
        done.append(one)
    return done


def _stored(source: StoreCheckpoints) -> list[Trashed]:
    found = []
    prefix = job_prefix(source.project, source.job, 0).rpartition("/")[0]
    front = f"{trash_folder('')}/"
    infos = list(source.store.list(prefix))
    for info in infos:
        node, _, rest = info.key.removeprefix(f"{prefix}/").partition("/")
        where, _, last = info.key.rpartition("/")
        rank = node.removeprefix("rank-")
        day, _, name = rest.removeprefix(front).rpartition("/")[0].partition("/")
        whole = rest.startswith(front) and last == MANIFEST and bool(name)
        if whole and rank.isdecimal() and day.isdecimal():
            size = sum(i.size for i in infos if i.key.startswith(f"{where}/")) - info.size
            found.append(Trashed(name, int(rank), int(day), where, size))
    return found


def _local(root: Path) -> list[Trashed]:
    aside = root / DOT_DIR / _LOCAL
    found = []
    for day in aside.iterdir() if aside.is_dir() else ():
        for path in manifest_directories(day) if day.name.isdecimal() else ():
            name = path.relative_to(day).as_posix()
            try:
                size = read_manifest(path).size
            except (CheckpointCorruptError, OSError):
                size = 0  # damaged: it expires like any other
            found.append(Trashed(name, 0, int(day.name), str(path), size))
    return found
