"""The commit of one image: on the disk, in place of copies if need be, else in the store."""

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
from bt_lightning.layout import check_checkpoint_id
from bt_lightning.localdir.commit import commit_files, write_hint
from bt_lightning.localdir.direct_io import BLOCK, write_image
from bt_lightning.localdir.disk_errors import advice, refused
from bt_lightning.localdir.disk_space import is_full, planned
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.local_checkpoints import read_manifest
from bt_lightning.manifest import FileEntry, Manifest
from bt_lightning.worker.arena_source import ImageSource
from bt_lightning.worker.early_upload import EarlyUpload, LentSource
from bt_lightning.worker.publish_report import note_published
from bt_lightning.worker_messages import CommitFailed, CommitImage, Committed, FileImage, Published

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.worker.free_disk_space import DiskSpaceMaker

_AHEAD_BYTES = 8 * 1024 * 1024
"""Smaller files are sent in a moment, after the commit."""


@dataclass(frozen=True)
class _Kept:
    """A save that is committed."""

    manifest: Manifest
    evicted: Sequence[str] = ()
    streamed: bool = False
    """The store has it, the disk has not."""
    trouble: str = ""
    """What the disk answered, if it failed; not if it was full."""


class _Refused(Exception):  # noqa: N818 - it becomes the error that the training process raises
    """A save that neither the disk nor the store takes."""

    def __init__(
        self, disk: str, store: str, size: int, evicted: Sequence[str], failed: OSError | None
    ) -> None:
        """`failed` is what the disk answered, if it was not just full."""
        super().__init__(disk, store, size, evicted, failed)
        self.disk, self.store, self.size, self.evicted = disk, store, size, evicted
        self.failed = failed


class ImageCommitter:
    """Commits images; called by the committer's thread, one after the other."""

    def __init__(
        self, root: Path, room: DiskSpaceMaker, offer: Callable[[EarlyUpload], None]
    ) -> None:
        self._root = root
        self._room = room
        self._offer = offer
        self._stale: dict[Path, str] = {}
        """Generations that the store has a newer one of, by their digests."""
        self._written: dict[int, tuple[Path, FileEntry]] = {}

    def keep(
        self, job: CommitImage, arena: memoryview
    ) -> list[Committed | CommitFailed | Published]:
        """Commit the image that lies in `arena`; return what the training process is told.

        Raises:
            CheckpointError: it cannot be committed, though the disk has room and works.
        """
        started, cpu = time.monotonic(), time.process_time()
        self._room.settle()
        final = self._root / check_checkpoint_id(job.checkpoint_id)
        try:
            kept = self._found(job, final) or self._kept(job, arena, final)
        except _Refused as neither:
            return [self._refused(job, neither)]
        outcome = Committed(
            number=job.number,
            manifest=kept.manifest.to_bytes(),
            write_s=time.monotonic() - started,
            durable_s=time.time() - job.began,
            cpu_s=time.process_time() - cpu,
            evicted=len(kept.evicted),
            streamed=kept.streamed,
            trouble=kept.trouble,
        )
        with contextlib.suppress(OSError):  # neither is a checkpoint
            write_hint(self._root, job.checkpoint_id, kept.manifest.step)
            note(
                self._root,
                "streamed" if kept.streamed else "durable",
                number=job.number,
                checkpoint=job.checkpoint_id,
                bytes=kept.manifest.size,
                write_s=outcome.write_s,
                local_durable_s=outcome.durable_s,
                cpu_s=outcome.cpu_s,
            )
        return [outcome, self._published(outcome)] if outcome.streamed else [outcome]

    def _published(self, outcome: Committed) -> Published:
        """What the publisher says of what it publishes."""
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

    def _found(self, job: CommitImage, final: Path) -> _Kept | None:
        """What was committed of this very save before, by a worker that died over its word."""
        created = job.facts.created_at
        standing = _standing(final)
        if standing is not None and standing.created_at == created:
            return _Kept(standing)
        stored = self._room.stored(job.checkpoint_id)
        if stored is not None and stored.created_at == created:
            self._retire(final)
            return _Kept(stored, streamed=True)
        return None

    def _retire(self, final: Path) -> None:
        """Take an older generation off the disk, as a commit there would: its name means another.

        The newer one is in the store. A reader of the name finds it there. A disk that fails is
        asked again at the next save.
        """
        standing = _standing(final)
        if standing is not None:
            self._stale[final] = standing.digest
        for place, digest in list(self._stale.items()):
            with contextlib.suppress(OSError):
                self._room.retire(place, digest)
                del self._stale[place]

    def _kept(self, job: CommitImage, arena: memoryview, final: Path) -> _Kept:
        """Commit on the disk, when need be in place of copies; else in the store.

        Raises:
            _Refused: neither takes it.
        """
        evicted: list[str] = []
        failed = None
        try:
            found = self._on_disk(job, arena, final, evicted)
        except OSError as error:
            if isinstance(error, CheckpointError) and not isinstance(error, DirectoryUnusableError):
                raise
            failed, found = error, f"the disk refused it ({error.strerror or error})"
        if isinstance(found, Manifest):
            return _Kept(found, evicted)
        try:
            manifest = self._stream(job, arena, final)
        except (CheckpointError, OSError) as error:
            raise _Refused(found, str(error), self._size(job), evicted, failed) from error
        self._retire(final)
        trouble = ""
        if failed is not None:
            trouble = f"{failed.strerror or failed}: {advice(self._root, failed)}"
        return _Kept(manifest, evicted, streamed=True, trouble=trouble)

    def _on_disk(
        self, job: CommitImage, arena: memoryview, final: Path, evicted: list[str]
    ) -> Manifest | str:
        """Commit on the disk; return why there is no room, if there is none.

        `evicted` gets the ids of copies that made room.

        Raises:
            OSError: the disk refused, and not for want of room.
        """
        more = False
        while True:
            size = self._size(job)
            room = self._room.make(size, job.checkpoint_id, more=more)
            evicted += room.evicted
            if not room.fits:
                return room.says
            if room.evicted and self._size(job) > size:
                continue  # a file that was to be linked went
            try:
                return self._write(job, arena, final)
            except OSError as error:
                if not is_full(error):
                    raise
                more = True  # something else took the room, or its blocks are larger

    def _generation(self, job: CommitImage, final: Path) -> int:
        known = (_standing(final), self._room.stored(job.checkpoint_id))
        return 1 + max(job.after, *(found.generation for found in known if found is not None), 0)

    def _stream(self, job: CommitImage, arena: memoryview, final: Path) -> Manifest:
        """Commit in the store, straight from the arena."""
        self._room.publisher()  # or everything would be hashed for nothing
        least = self._generation(job, final) - 1
        sources = {
            image.path: ImageSource(image.path, arena[image.offset : image.offset + image.size])
            for image in job.files
        }

        def describe(generation: int) -> Manifest:
            files = tuple(source.entry for source in sources.values())
            return job.facts.manifest(job.checkpoint_id, 1 + max(least, generation), files)

        return self._room.stream(describe, sources)

    def _refused(self, job: CommitImage, neither: _Refused) -> CommitFailed:
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(
                self._root,
                "refused",
                number=job.number,
                checkpoint=job.checkpoint_id,
                needed=neither.size,
                disk=neither.disk,
                store=neither.store,
            )
        said = (
            f"the checkpoint {job.checkpoint_id} was not saved: {neither.disk}. Sending it to the"
            f" store instead failed: {neither.store}. What was committed before is untouched: "
        )
        if neither.failed is None:
            error: DirectoryUnusableError = DirectoryFullError(
                f"{said}free some space, keep fewer checkpoints (save_top_k), or raise the budget"
                " (BT_VOLUME_SIZE_GIB)"
            )
        else:
            what = advice(self._root, neither.failed)
            error = refused(f"{said}{what}, or use another BT_CHECKPOINT_DIR", neither.failed)
        return CommitFailed(number=job.number, error=error, evicted=len(neither.evicted))

    def _write(self, job: CommitImage, arena: memoryview, final: Path) -> Manifest:
        """Commit on the disk."""
        generation = self._generation(job, final)
        offer = EarlyUpload(job.checkpoint_id, generation)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            return job.facts.manifest(job.checkpoint_id, generation, entries)

        writers = {image.path: partial(self._file, arena, image, offer) for image in job.files}
        committed = None
        try:
            manifest = commit_files(final, self._root, writers, describe)
            committed = final
        finally:
            offer.take_back(committed)  # before the arena is anybody else's
        self._written = {
            image.content: (final / image.path, entry)
            for image, entry in zip(job.files, manifest.files, strict=True)
        }
        return manifest

    def _size(self, job: CommitImage) -> int:
        """Bytes that the disk needs for it."""
        return planned(image.size for image in job.files if self._known(image, image.path) is None)

    def _known(self, image: FileImage, path: str) -> tuple[Path, FileEntry] | None:
        """A file of the last checkpoint with the same bytes, which can be linked."""
        known = self._written.get(image.content)
        if known is None or known[1].path != path or not known[0].exists():
            return None
        return known

    def _file(
        self, arena: memoryview, image: FileImage, offer: EarlyUpload, target: Path, path: str
    ) -> FileEntry:
        """Write one file; or link it, if its bytes are those of a file of the last checkpoint."""
        known = self._known(image, path)
        if known is not None:
            try:
                os.link(known[0], target)
            except OSError:
                pass  # it is gone, or this file system has no links
            else:
                return known[1]
        end = image.offset + -(-image.size // BLOCK) * BLOCK
        view = arena[image.offset : end]

        def described(entry: FileEntry) -> None:
            if entry.size >= _AHEAD_BYTES:
                offer.add(path, LentSource(view[: entry.size], entry))
                self._offer(offer)

        return write_image(target, path, view, image.size, described)


def _standing(final: Path) -> Manifest | None:
    """The manifest of what stands at `final`, if it is a whole checkpoint."""
    try:
        return read_manifest(final)
    except (CheckpointCorruptError, OSError):
        return None  # the training process knows how far the generations of a name are
