"""Download of checkpoints of earlier jobs that a job refers to.

They lie as on Baseten, `<load dir>/<job>/rank-<node>/<checkpoint>`, each complete or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.manage.download_copy import CountingReader
from bt_lightning.path_layout import MANIFEST, check_checkpoint_id, job_prefix, slug
from bt_lightning.runtime.job_spec_and_environment import Reference
from bt_lightning.store.catalog.projects import list_node_folders, view_job
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.fetch_to_disk import bring
from bt_lightning.uri import LATEST, is_bt, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bt_lightning.store.catalog.projects import CatalogEntry, JobView
    from bt_lightning.store.interface import Store

    Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
    """Called with a title and the total bytes; what it yields is called with bytes that came."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One checkpoint that a reference was resolved to, on the disk."""

    job: str
    node_rank: int
    checkpoint_id: str
    step: int
    path: Path


def parse_reference(text: str) -> Reference:
    """Parse `latest`, `JOB`, `JOB/CHECKPOINT` or a `bt://` URL.

    Raises:
        InvalidSettingError: `text` is none of these.
    """
    if is_bt(text):
        uri = parse(text)
        job = None if uri.revision == LATEST else uri.revision
        return Reference(uri.project, job, uri.path or None)
    if text == LATEST:
        return Reference()
    job, _, checkpoint = text.partition("/")
    if not job or slug(job) != job or (checkpoint and check_checkpoint_id(checkpoint) is None):
        msg = (
            f"{text!r} names no checkpoint to load: expected latest, JOB, JOB/CHECKPOINT, or"
            " bt://project@job/checkpoint"
        )
        raise InvalidSettingError(msg)
    return Reference(None, job, checkpoint or None)


def resolve(
    store: Store, reference: Reference, project: str, job: str, node_rank: int
) -> list[CatalogEntry]:
    """The checkpoints that node `node_rank` of the job `job` of `project` loads for a reference.

    These are that of its own rank's folder, and that of rank 0, which every node may need. The most
    recent job is never `job` itself.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint.
        InvalidSettingError: several projects have such a job.
        StoreError: the store refused.
    """
    view = _view(store, reference, project, job)
    if reference.checkpoint is not None:
        found = view.find(reference.checkpoint)
        if found is None:
            msg = f"there is no {reference}: {view.describe()}"
            raise CheckpointNotFoundError(msg)
    else:
        found = view.latest()
    copies = [
        other
        for other in view.checkpoints()
        if other.checkpoint_id == found.checkpoint_id
        and other.location.node_rank in {0, node_rank}
        and other.manifest.step == found.manifest.step
    ]
    newest: dict[int, CatalogEntry] = {}
    for other in sorted(copies, key=lambda entry: entry.number):
        newest[other.location.node_rank] = other
    return list(newest.values()) or [found]


def _view(store: Store, reference: Reference, project: str, job: str) -> JobView:
    if reference.job is None:
        return view_job(store, reference.project or project, LATEST, without=slug(job))
    if reference.project is not None:
        return view_job(store, reference.project, reference.job)
    job_slug = slug(reference.job)
    projects = {place.project for place in list_node_folders(store) if place.job == job_slug}
    if slug(project) in projects or not projects:
        return view_job(store, project, reference.job)
    if len(projects) > 1:
        named = ", ".join(sorted(projects))
        msg = f"the job {reference.job} is in the projects {named}: write bt://PROJECT@JOB"
        raise InvalidSettingError(msg)
    return view_job(store, projects.pop(), reference.job)


def load_references(
    store: Store, found: Sequence[CatalogEntry], load_dir: Path, progress: Progress
) -> list[Loaded]:
    """Download checkpoints below `load_dir`, verified; those already there are verified and kept.

    The next call continues a download that was killed.

    Raises:
        CheckpointCorruptError: one is damaged in the store.
        DirectoryFullError: one does not fit on the disk.
        StoreError: the store refused.
        OSError: the disk refused.
    """
    load_dir.mkdir(parents=True, exist_ok=True)
    loaded = []
    for entry in found:
        at, name = entry.location, check_checkpoint_id(entry.checkpoint_id)
        final = load_dir / at.job / f"rank-{at.node_rank}" / name
        if not _is_loaded(final, entry.data):
            source = StoreReader(store, job_prefix(at.project, at.job, at.node_rank), at.folder)
            with progress(f"loading {name}", source.manifest.size) as on_bytes:
                bring(CountingReader(source, on_bytes), load_dir, final)
        loaded.append(Loaded(at.job, at.node_rank, name, entry.manifest.step, final))
    return loaded


def other_checkpoints(load_dir: Path, loaded: Sequence[Loaded]) -> list[Path]:
    """Paths of checkpoints in `load_dir` that are not in `loaded`: a resume may choose them."""
    loaded_paths = {entry.path for entry in loaded}
    return [found.path for found in list_committed(load_dir)[0] if found.path not in loaded_paths]


def _is_loaded(final: Path, manifest: bytes) -> bool:
    """Whether the checkpoint of that manifest is at `final`, complete and undamaged."""
    try:
        if read_small_file(final / MANIFEST, file_limits.MANIFEST) != manifest:
            return False
        verify(final)
    except (OSError, ValueError):
        return False
    return True
