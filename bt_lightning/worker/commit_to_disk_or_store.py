"""The commit of one image: to the local disk, or to the store if the disk cannot take it.

A disk without room for it first evicts copies of checkpoints that the store has.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DirectoryFullError,
    DirectoryUnusableError,
)
from bt_lightning.localdir.commit import commit_files, write_hint
from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.direct_io import BLOCK, write_image
from bt_lightning.localdir.disk_errors import advice, refused
from bt_lightning.localdir.disk_space import is_full, planned
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.worker.arena_source import sources_in_arena
from bt_lightning.worker.early_upload import EarlyUpload, LentSource
from bt_lightning.worker.publish_report import note_published
from bt_lightning.worker.zip_checksums import ZipChecksums
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage, Published

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker

_EARLY_UPLOAD_BYTES = 8 * 1024 * 1024
"""Smaller files take a moment to send: they wait for the commit."""


@dataclass(frozen=True)
class _Commit:
    """How a save was committed."""

    manifest: Manifest
    evicted: Sequence[str] = ()
    streamed: bool = False
    """Committed in the store only."""
    trouble: str = ""
    """The disk's error, if it failed; empty if it was full."""


@dataclass(frozen=True)
class _Memory:
    """An arena to read a file from, once its CRCs are filled in."""

    arena: memoryview
    checksums: ZipChecksums


class _NotCommittedError(Exception):
    """Raised for a save that neither the disk nor the store takes; becomes `CommitFailed`."""

    def __init__(
        self, disk: str, store: str, size: int, evicted: Sequence[str], failed: OSError | None
    ) -> None:
        """`failed` is the disk's error, if it was not just full."""
        super().__init__(disk, store, size, evicted, failed)
        self.disk, self.store, self.size, self.evicted = disk, store, size, evicted
        self.failed = failed


class ImageCommitter:
    """Commits images, one after the other; called by the commit thread."""

    def __init__(
        self,
        root: Path,
        space: DiskSpaceMaker,
        offer_upload: Callable[[EarlyUpload], None],
    ) -> None:
        self._root = root
        self._space = space
        self._offer_upload = offer_upload
        self._stale: dict[Path, str] = {}
        """Digest by path of each checkpoint on the disk that is older than the store's."""
        self._written: dict[int, tuple[Path, FileEntry]] = {}

    def commit(
        self, job: CommitImage, arena: memoryview
    ) -> list[Committed | CommitFailed | Published]:
        """Commit the image that lies in `arena`; return the events for the training process.

        The CRCs of zip files are filled in there; nothing else of it changes.

        Raises:
            CheckpointError: the image cannot be committed, though disk and store work.
        """
        started, cpu = time.monotonic(), time.process_time()
        self._space.settle()
        final = self._root / check_checkpoint_id(job.checkpoint_id)
        try:
            commit = self._find_earlier_commit(job, final) or self._commit(job, arena, final)
        except _NotCommittedError as refusal:
            return [self._report_failure(job, refusal)]
        outcome = Committed(
            number=job.number,
            manifest=commit.manifest.to_bytes(),
            write_s=time.monotonic() - started,
            durable_s=time.time() - job.began,
            cpu_s=time.process_time() - cpu,
            evicted=len(commit.evicted),
            streamed=commit.streamed,
            trouble=commit.trouble,
        )
        with contextlib.suppress(OSError):  # a hint and an event, no checkpoint
            write_hint(self._root, job.checkpoint_id, commit.manifest.step)
            note(
                self._root,
                "streamed" if commit.streamed else "durable",
                number=job.number,
                checkpoint=job.checkpoint_id,
                bytes=commit.manifest.size,
                write_s=outcome.write_s,
                local_durable_s=outcome.durable_s,
                cpu_s=outcome.cpu_s,
            )
        return [outcome, self._note_published(outcome)] if outcome.streamed else [outcome]

    def _note_published(self, outcome: Committed) -> Published:
        """Note that the store has the checkpoint, as the publisher does for what it sends."""
        manifest = Manifest.from_bytes(outcome.manifest, "an image")
        event = Published(
            checkpoint_id=manifest.checkpoint_id,
            digest=manifest.digest,
            size=manifest.size,
            seconds=outcome.write_s,
            remote_durable_s=outcome.durable_s,
        )
        note_published(self._root, event)
        return event

    def _find_earlier_commit(self, job: CommitImage, final: Path) -> _Commit | None:
        """The commit of this same save by an earlier worker, which died before it reported."""
        created = job.facts.created_at
        existing = _manifest_at(final)
        if existing is not None and existing.created_at == created:
            return _Commit(existing)
        stored = self._space.stored(job.checkpoint_id)
        if stored is not None and stored.created_at == created:
            self._delete_older_generation(final)
            return _Commit(stored, streamed=True)
        return None

    def _delete_older_generation(self, final: Path) -> None:
        """Delete the older generation from the disk: its name means the newer one in the store.

        A deletion that fails is tried again at the next save.
        """
        existing = _manifest_at(final)
        if existing is not None:
            self._stale[final] = existing.digest
        for place, digest in list(self._stale.items()):
            with contextlib.suppress(OSError):
                self._space.retire(place, digest)
                del self._stale[place]

    def _commit(self, job: CommitImage, arena: memoryview, final: Path) -> _Commit:
        """Commit to the disk, evicting copies if need be; else to the store.

        Raises:
            _NotCommittedError: both refuse.
        """
        evicted: list[str] = []
        failed = None
        try:
            found = self._commit_to_disk(job, arena, final, evicted)
        except OSError as error:
            if isinstance(error, CheckpointError) and not isinstance(error, DirectoryUnusableError):
                raise
            failed, found = error, f"the disk refused it ({error.strerror or error})"
        if isinstance(found, Manifest):
            return _Commit(found, evicted)
        try:
            manifest = self._commit_to_store(job, arena, final)
        except (CheckpointError, OSError) as error:
            raise _NotCommittedError(found, str(error), self._size(job), evicted, failed) from error
        self._delete_older_generation(final)
        trouble = ""
        if failed is not None:
            trouble = f"{failed.strerror or failed}: {advice(self._root, failed)}"
        return _Commit(manifest, evicted, streamed=True, trouble=trouble)

    def _commit_to_disk(
        self, job: CommitImage, arena: memoryview, final: Path, evicted: list[str]
    ) -> Manifest | str:
        """Commit to the disk; return the reason if there is no room.

        The ids of evicted copies are added to `evicted`.

        Raises:
            OSError: the disk refused, and not for want of room.
        """
        more = False
        while True:
            size = self._size(job)
            space = self._space.make(size, job.checkpoint_id, more=more)
            evicted += space.evicted
            if not space.fits:
                return space.reason
            if space.evicted and self._size(job) > size:
                continue  # a file that was to be linked is gone
            try:
                return self._write(job, arena, final)
            except OSError as error:
                if not is_full(error):
                    raise
                more = True  # something else took the room, or its blocks are larger

    def _generation(self, job: CommitImage, final: Path) -> int:
        known = (_manifest_at(final), self._space.stored(job.checkpoint_id))
        return 1 + max(job.after, *(found.generation for found in known if found is not None), 0)

    def _commit_to_store(self, job: CommitImage, arena: memoryview, final: Path) -> Manifest:
        """Commit to the store, straight from the arena."""
        self._space.publisher()  # raises before anything is hashed
        sources = sources_in_arena(job, arena)
        least = self._generation(job, final) - 1

        def describe(generation: int) -> Manifest:
            files = tuple(source.entry for source in sources.values())
            return job.facts.manifest(job.checkpoint_id, 1 + max(least, generation), files)

        return self._space.stream(describe, sources)

    def _report_failure(self, job: CommitImage, refusal: _NotCommittedError) -> CommitFailed:
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(
                self._root,
                "refused",
                number=job.number,
                checkpoint=job.checkpoint_id,
                needed=refusal.size,
                disk=refusal.disk,
                store=refusal.store,
            )
        said = (
            f"the checkpoint {job.checkpoint_id} was not saved: {refusal.disk}. Sending it to the"
            f" store instead failed: {refusal.store}. What was committed before is untouched: "
        )
        if refusal.failed is None:
            error: DirectoryUnusableError = DirectoryFullError(
                f"{said}free some space, keep fewer checkpoints (save_top_k), or raise the budget"
                " (BT_VOLUME_SIZE_GIB)"
            )
        else:
            what = advice(self._root, refusal.failed)
            error = refused(f"{said}{what}, or use another BT_CHECKPOINT_DIR", refusal.failed)
        return CommitFailed(number=job.number, error=error, evicted=len(refusal.evicted))

    def _write(self, job: CommitImage, arena: memoryview, final: Path) -> Manifest:
        """Write the files to the disk and commit them; large ones may be sent meanwhile."""
        generation = self._generation(job, final)
        upload = EarlyUpload(job.checkpoint_id, generation)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            return job.facts.manifest(job.checkpoint_id, generation, entries)

        committed = None
        try:
            with ZipChecksums(arena) as checksums:
                for image in job.files:
                    if self._find_linkable(image, image.path) is None:
                        checksums.begin(image)
                memory = _Memory(arena.toreadonly(), checksums)
                writers = {
                    image.path: partial(self._write_or_link, memory, image, upload)
                    for image in job.files
                }
                manifest = commit_files(final, self._root, writers, describe)
            committed = final
        finally:
            upload.take_back(committed)  # before the arena is used for another save
        self._written = {
            image.content: (final / image.path, entry)
            for image, entry in zip(job.files, manifest.files, strict=True)
        }
        return manifest

    def _size(self, job: CommitImage) -> int:
        """Bytes that the disk needs for the image: files that can be linked need none."""
        return planned(
            image.size for image in job.files if self._find_linkable(image, image.path) is None
        )

    def _find_linkable(self, image: FileImage, path: str) -> tuple[Path, FileEntry] | None:
        """A file of the last checkpoint with the same bytes and path, which can be linked."""
        known = self._written.get(image.content)
        if known is None or known[1].path != path or not known[0].exists():
            return None
        return known

    def _write_or_link(
        self, memory: _Memory, image: FileImage, upload: EarlyUpload, target: Path, path: str
    ) -> FileEntry:
        """Write one file, or link the same file of the last checkpoint."""
        known = self._find_linkable(image, path)
        if known is not None:
            try:
                os.link(known[0], target)
            except OSError:
                pass  # it is gone, or this file system has no links
            else:
                return known[1]
        memory.checksums.finish(image)
        end = image.offset + -(-image.size // BLOCK) * BLOCK
        view = memory.arena[image.offset : end]

        def described(hasher: Hasher) -> FileEntry:
            entry = hasher.entry(path)
            if entry.size >= _EARLY_UPLOAD_BYTES:
                upload.add(path, LentSource(view[: entry.size], entry))
                self._offer_upload(upload)
            return entry

        return write_image(target, view, image.size, Hasher(), described)


def _manifest_at(final: Path) -> Manifest | None:
    """The manifest of the checkpoint at `final`, if it can be read."""
    try:
        return read_manifest(final)
    except (CheckpointCorruptError, OSError):
        return None  # the job's `after` still bounds the generation
