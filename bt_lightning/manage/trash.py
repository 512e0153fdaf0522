"""Checkpoints that were put aside rather than deleted, until a day that was said then.

On a disk they are renamed; in a store they are copied on its server, and deleted where they were.
Nothing lists or loads them there. Those whose day has come go with the next call for their job.
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
from bt_lightning.localdir.local_checkpoints import manifest_directories, read_manifest
from bt_lightning.localdir.rename_noreplace import rename_new
from bt_lightning.manage.delete import Deletion, delete_items
from bt_lightning.manage.download_copy import holding
from bt_lightning.manage.job_checkpoints import (
    DirectoryCheckpoints,
    JoinedCheckpoints,
    StoreCheckpoints,
)
from bt_lightning.path_layout import DOT_DIR, MANIFEST, job_prefix, trash_folder, under
from bt_lightning.store.catalog.removal_requests import forget_removals
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.publish import Base, copy_checkpoint
from bt_lightning.store.transfer.unpublish import unpublish

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints

_DAY_S = 24 * 3600
_LOCAL = "trashed"


@dataclass(frozen=True, slots=True)
class Trashed:
    """One checkpoint that was put aside."""

    name: str
    node_rank: int
    expires: int
    """Seconds of the epoch."""
    where: str
    """Key prefix, or directory."""
    size: int
    """Bytes of its files."""


def trash_items(shelf: JobCheckpoints, items: Sequence[CheckpointItem], days: float) -> Deletion:
    """Put checkpoints aside for so many days; protected ones stay where they are.

    Raises:
        LeaseHeldError: the job runs, so that its store is its own.
        InvalidSettingError: of a store and a directory, only the directory has one of them.
        StoreError, OSError: not all was put aside; what was is nowhere lost.
    """
    expires = int(time.time() + days * _DAY_S)
    free = [item for item in items if shelf.protection(item) is None]
    done = Deletion(kept=[item.name for item in items if item not in free])
    if isinstance(shelf, JoinedCheckpoints):
        local = [item.name for item in free if shelf.only_on_disk(item)]
        if local:
            msg = f"the store does not have {', '.join(local)} yet: put aside with --dir alone"
            raise InvalidSettingError(msg)
        shelf = shelf.store_shelf
    if isinstance(shelf, StoreCheckpoints):
        for item in free:
            _copy_aside(shelf, item, expires)
        gone = delete_items(shelf, free)
        done.deleted, done.asked, done.kept = gone.deleted, gone.asked, done.kept + gone.kept
    else:
        assert isinstance(shelf, DirectoryCheckpoints)
        for item in free:
            target = Path(shelf.name) / DOT_DIR / _LOCAL / str(expires) / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            rename_new(Path(item.where), target)
            done.deleted.append(item.name)
    return done


def trashed(shelf: JobCheckpoints) -> list[Trashed]:
    """What was put aside of a job, the one that goes first, first: one listing."""
    if isinstance(shelf, JoinedCheckpoints):
        shelf = shelf.store_shelf
    found = _stored(shelf) if isinstance(shelf, StoreCheckpoints) else _local(Path(shelf.name))
    return sorted(found, key=lambda one: (one.expires, one.name))


def restore(shelf: JobCheckpoints, name: str) -> Trashed:
    """Bring back the one of that name that was put aside last.

    Raises:
        CheckpointNotFoundError: none is there.
        CheckpointExistsError: a directory has another one of that name by now.
        LeaseHeldError: the job runs.
        StoreError: the store refused.
    """
    if isinstance(shelf, JoinedCheckpoints):
        shelf = shelf.store_shelf
    named = [one for one in trashed(shelf) if one.name == name]
    if not named:
        msg = f"{shelf.name} has put no {name} aside"
        raise CheckpointNotFoundError(msg)
    one = named[-1]
    if isinstance(shelf, StoreCheckpoints):
        place = StoreReader(shelf.store, "", one.where)
        prefix = job_prefix(shelf.project, shelf.job, one.node_rank)
        with holding(shelf.store, prefix) as lease:
            forget_removals(shelf.store, prefix, frozenset({place.manifest.digest}))
            copy_checkpoint(place, shelf.store, prefix, lease, Base(one.where, place.manifest))
            unpublish(shelf.store, "", one.where)
        shelf.forget()
    else:
        final = Path(shelf.name) / name
        if final.exists():
            msg = f"{final} is there: move it first"
            raise CheckpointExistsError(msg)
        final.parent.mkdir(parents=True, exist_ok=True)
        rename_new(Path(one.where), final)
    return one


def empty(shelf: JobCheckpoints, *, before: float | None = None) -> list[Trashed]:
    """Delete for good what was put aside: all, or only what was to go before a time.

    Nothing is done while the job runs. `before` is in seconds of the epoch.
    """
    if isinstance(shelf, JoinedCheckpoints):
        shelf = shelf.store_shelf
    gone = [one for one in trashed(shelf) if before is None or one.expires < before]
    if isinstance(shelf, StoreCheckpoints):
        return _empty_store(shelf, gone)
    for one in gone:
        delete_directory(Path(one.where), Path(shelf.name))
    return gone


def _copy_aside(shelf: StoreCheckpoints, item: CheckpointItem, expires: int) -> None:
    prefix = job_prefix(shelf.project, shelf.job, item.node_rank)
    aside = under(trash_folder(prefix), str(expires))
    place = StoreReader(shelf.store, "", item.where)
    with holding(shelf.store, prefix) as lease:
        copy_checkpoint(place, shelf.store, aside, lease, Base(item.where, place.manifest))


def _empty_store(shelf: StoreCheckpoints, gone: Iterable[Trashed]) -> list[Trashed]:
    done = []
    for one in gone:
        try:
            with holding(shelf.store, job_prefix(shelf.project, shelf.job, one.node_rank)):
                unpublish(shelf.store, "", one.where)
        except LeaseHeldError:
            continue  # the next call finds it again
        done.append(one)
    return done


def _stored(shelf: StoreCheckpoints) -> list[Trashed]:
    found = []
    prefix = job_prefix(shelf.project, shelf.job, 0).rpartition("/")[0]
    front = f"{trash_folder('')}/"
    infos = list(shelf.store.list(prefix))
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
                size = 0  # damaged: it goes on its day as any other
            found.append(Trashed(name, 0, int(day.name), str(path), size))
    return found
