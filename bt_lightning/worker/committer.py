"""Commits images of checkpoints from the arenas to the local disk; a thread of the worker.

One image after the other, in the order of the saves. What it is told twice (a worker that was
killed is started again, and told again) it commits once.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    DirectoryFullError,
)
from bt_lightning.layout import DOT_DIR, check_checkpoint_id
from bt_lightning.localdir.commit import commit_files, write_hint
from bt_lightning.localdir.committed import read_manifest
from bt_lightning.localdir.direct import BLOCK, write_image
from bt_lightning.localdir.durable import lock, sweep_temporaries
from bt_lightning.localdir.events import note
from bt_lightning.localdir.room import is_full, planned
from bt_lightning.manifest import FileEntry, Manifest
from bt_lightning.messages import (
    CommitFailed,
    CommitImage,
    Committed,
    FileImage,
    Published,
    Withdrawn,
)
from bt_lightning.worker.ahead import LentSource, Offer
from bt_lightning.worker.commit_lock import commit_lock
from bt_lightning.worker.images import ImageSource
from bt_lightning.worker.publisher import note_published

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.worker.room import RoomMaker


_AHEAD_BYTES = 8 * 1024 * 1024
"""Smaller files are sent in a moment, after the commit."""


@dataclass(frozen=True)
class _Kept:
    """A save that is committed."""

    manifest: Manifest
    evicted: Sequence[str] = ()
    streamed: bool = False
    """The store has it, the disk has not."""


class _Refused(Exception):  # noqa: N818 - it becomes the error that the training process raises
    """A save that neither the disk nor the store takes."""

    def __init__(self, disk: str, store: str, size: int, evicted: Sequence[str]) -> None:
        super().__init__(disk, store, size, evicted)
        self.disk, self.store, self.size, self.evicted = disk, store, size, evicted


Outcome = Committed | CommitFailed | Withdrawn


class Committer:
    """The queue of images, and the thread that writes them.

    `done` is called for each outcome, and with None when `idle` may have changed; `offer` when a
    large file of an image is described, and may be sent before it is on the disk.
    """

    def __init__(
        self,
        root: Path,
        done: Callable[[Outcome | Published | None], None],
        offer: Callable[[Offer], None] = lambda _: None,
        *,
        start: bool = True,
        room: RoomMaker,
    ) -> None:
        """`start=False` for a worker that no training process gives images to."""
        self._root = root
        self._done = done
        self._offer = offer
        self._room = room
        self._arenas: dict[int, memoryview] = {}
        self._jobs: deque[CommitImage] = deque()
        self._working = False
        self._leaving = False
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._written: dict[int, tuple[Path, FileEntry]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning commits")
        if start:
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether every image that was put is committed, or has failed."""
        with self._changed:
            return not self._jobs and not self._working

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Map an arena; takes the descriptor over."""
        try:
            self._arenas[index] = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def drop(self, index: int) -> None:
        """Forget an arena; its memory goes with the last one who maps it."""
        self._arenas.pop(index, None)

    def put(self, job: CommitImage) -> None:
        """Commit `job` after those that were put before; never waits."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def withdraw(self, number: int) -> None:
        """Give up a job that has not begun; any other has, or will have, its own outcome."""
        with self._changed:
            found = [job for job in self._jobs if job.number == number]
            for job in found:
                self._jobs.remove(job)
        for _ in found:
            self._done(Withdrawn(number))

    def leave(self) -> None:
        """No more jobs will come: when the last is done, a new run need not wait any longer."""
        with self._changed:
            self._leaving = True
            self._changed.notify()

    def _run(self) -> None:
        self._own()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._leaving)
                if not self._jobs:
                    self._disown()
                    return
                job = self._jobs.popleft()
                self._working = True
            try:
                outcome: Outcome = self._commit(job)
            except _Refused as refused:
                outcome = self._refused(job, refused)
            except (CheckpointError, OSError) as error:
                outcome = CommitFailed(number=job.number, error=error)
            self._done(outcome)  # before this counts as idle: the process may end then
            if isinstance(outcome, Committed) and outcome.streamed:
                self._done(self._published(outcome))
            with self._changed:
                self._working = False
            self._done(None)

    def _commit(self, job: CommitImage) -> Committed:
        started, cpu = time.monotonic(), time.process_time()
        final = self._root / check_checkpoint_id(job.checkpoint_id)
        kept = self._found(job, final) or self._kept(job, final)
        outcome = Committed(
            number=job.number,
            manifest=kept.manifest.to_bytes(),
            write_s=time.monotonic() - started,
            durable_s=time.time() - job.began,
            cpu_s=time.process_time() - cpu,
            evicted=len(kept.evicted),
            streamed=kept.streamed,
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
        return outcome

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
        created = job.facts["created_at"]
        standing = _standing(final)
        if standing is not None and standing.created_at == created:
            return _Kept(standing)
        stored = self._room.stored(job.checkpoint_id)
        if stored is not None and stored.created_at == created:
            return _Kept(stored, streamed=standing is None)
        return None

    def _kept(self, job: CommitImage, final: Path) -> _Kept:
        """Commit on the disk, when need be in place of copies; else in the store.

        Raises:
            _Refused: there is room in neither.
        """
        evicted: list[str] = []
        more = False
        while True:
            size = self._size(job)
            room = self._room.make(size, job.checkpoint_id, more=more)
            evicted += room.evicted
            if not room.fits:
                break
            if room.evicted and self._size(job) > size:
                continue  # a file that was to be linked went
            try:
                return _Kept(self._write(job, final, self._generation(job, final)), evicted)
            except OSError as error:
                if not is_full(error):
                    raise
                more = True  # something else took the room, or its blocks are larger
        try:
            return _Kept(self._stream(job, final), evicted, streamed=True)
        except (CheckpointError, OSError) as error:
            raise _Refused(room.says, str(error), size, evicted) from error

    def _generation(self, job: CommitImage, final: Path) -> int:
        known = (_standing(final), self._room.stored(job.checkpoint_id))
        return 1 + max(job.after, *(found.generation for found in known if found is not None), 0)

    def _stream(self, job: CommitImage, final: Path) -> Manifest:
        """Commit in the store, straight from the arena."""
        arena, facts = self._arenas[job.arena], dict[str, Any](job.facts)
        least = self._generation(job, final) - 1
        sources = {
            image.path: ImageSource(image.path, arena[image.offset : image.offset + image.size])
            for image in job.files
        }

        def describe(generation: int) -> Manifest:
            return Manifest(
                checkpoint_id=job.checkpoint_id,
                generation=1 + max(least, generation),
                files=tuple(source.entry for source in sources.values()),
                **facts,
            )

        return self._room.stream(describe, sources)

    def _refused(self, job: CommitImage, refused: _Refused) -> CommitFailed:
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(
                self._root,
                "refused",
                number=job.number,
                checkpoint=job.checkpoint_id,
                needed=refused.size,
                disk=refused.disk,
                store=refused.store,
            )
        failed = DirectoryFullError(
            f"the checkpoint {job.checkpoint_id} was not saved: {refused.disk}. Sending it to the"
            f" store instead failed: {refused.store}. What was committed before is untouched: free"
            " some space, keep fewer checkpoints (save_top_k), or raise the budget"
            " (BT_VOLUME_SIZE_GIB)"
        )
        return CommitFailed(number=job.number, error=failed, evicted=len(refused.evicted))

    def _write(self, job: CommitImage, final: Path, generation: int) -> Manifest:
        facts: dict[str, Any] = dict(job.facts)
        offer = Offer(job.checkpoint_id, generation)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            return Manifest(
                checkpoint_id=job.checkpoint_id, generation=generation, files=entries, **facts
            )

        writers = {image.path: partial(self._file, job.arena, image, offer) for image in job.files}
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
        self, arena: int, image: FileImage, offer: Offer, target: Path, path: str
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
        view = self._arenas[arena][image.offset : end]

        def described(entry: FileEntry) -> None:
            if entry.size >= _AHEAD_BYTES:
                offer.add(path, LentSource(view[: entry.size], entry))
                self._offer(offer)

        return write_image(target, path, view, image.size, described)

    def _own(self) -> None:
        """Hold the lock that a new run waits for: this commit may be its newest checkpoint."""
        (self._root / DOT_DIR).mkdir(parents=True, exist_ok=True)
        self._owner = os.open(commit_lock(self._root), os.O_RDWR | os.O_CREAT, 0o666)
        lock(self._owner, fcntl.LOCK_EX)
        sweep_temporaries(self._root)  # of a worker that was killed over its commit

    def _disown(self) -> None:
        assert self._owner is not None
        os.close(self._owner)
        self._owner = None


def _standing(final: Path) -> Manifest | None:
    """The manifest of what stands at `final`, if it is a whole checkpoint."""
    try:
        return read_manifest(final)
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return None
