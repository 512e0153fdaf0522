"""Writes this rank's part of a save from its arena: the files, then the record.

Called by the commit thread, which never waits for other ranks; only for room on the disk, a few
seconds, since rank 0's worker alone may delete something to make it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import (
    CheckpointError,
    DirectoryFullError,
    DirectoryUnusableError,
    PartsMissingError,
    StoreError,
)
from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.direct_io import BLOCK, write_image
from bt_lightning.localdir.disk_errors import refused
from bt_lightning.localdir.disk_space import is_full, planned
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.fsync import sync_folders
from bt_lightning.part_messages import AwaitParts, MissPart, PartDurable
from bt_lightning.path_layout import check_member
from bt_lightning.sharding.save_part import PartRecord, SaveHead
from bt_lightning.worker.arena_source import sources_in_arena
from bt_lightning.worker.gather_parts import DurablePart
from bt_lightning.worker.part_refusals import no_room_for_part, refusal_of_part
from bt_lightning.worker.zip_checksums import ZipChecksums
from bt_lightning.worker_messages import CommitFailed, CommitImage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.sharding.save_part import MissingCause, SaveKey, SavePart
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker
    from bt_lightning.worker.gather_parts import GatherThread
    from bt_lightning.worker.gather_place import GatherPlace
    from bt_lightning.worker.removals_of_saves import RemovalsOfSaves
    from bt_lightning.worker_messages import FileImage

_ROOM_S: Final = 10.0
"""Longest wait for room that rank 0's worker makes."""
_POLL_S: Final = 0.1
_NO_FINGERPRINT: Final = 32 * "0"
"""Of a part that was never laid out."""


class PartWriter:
    """Adds this rank's parts to gathers, one after the other; used by the commit thread."""

    def __init__(
        self,
        root: Path,
        space: DiskSpaceMaker,
        place: GatherPlace,
        gathers: GatherThread,
        removals: RemovalsOfSaves,
    ) -> None:
        """`gathers` reports what comes of each part that is durable."""
        self.stream: Callable[[PartRecord, Mapping[str, DescribedSource]], None] | None = None
        """Sends a part that the disk does not take to the store, if parts meet there."""
        self.removals = removals
        """Those of saves that are not committed yet."""
        self._root = root
        self._space = space
        self._place = place
        self._gathers = gathers
        self.added: tuple[FileEntry, ...] = ()
        """The files of the last part that was added; empty if it was not."""
        self._host = socket.gethostname()
        self._written: dict[int, tuple[Path, FileEntry, tuple[int, int]]] = {}
        """Of the last part: path, entry and inode of each file, by content."""
        self._last: SaveKey | None = None
        self._moved: Path | None = None
        """Where the files of the last part are since the commit."""

    def add(self, job: CommitImage, arena: memoryview) -> list[PartDurable | CommitFailed]:
        """Write a part from its arena; return the events for the training process."""
        part = job.part
        assert part is not None
        self.added = ()
        started, cpu = time.monotonic(), time.process_time()
        evicted: list[str] = []
        try:
            if self._place.outcome(part.key) is None:
                folder = self._place.begin(part)
                if self._is_to_be_written(part):
                    self._write_or_send(job, arena, folder, evicted)
        except (CheckpointError, OSError) as error:
            if not self._is_decided(part):  # else its files are deleted by now
                self._delete_files(job, part)
                return [self._fail(job, part, error, evicted)]
        own = DurablePart(
            number=job.number,
            part=part,
            began=job.began,
            write_s=time.monotonic() - started,
            cpu_s=time.process_time() - cpu,
            evicted=len(evicted),
        )
        self._gathers.wait_for(own)
        return [PartDurable(job.number)]

    def _is_to_be_written(self, part: SavePart) -> bool:
        """Whether no worker of this rank has written the part before it was killed.

        Records go when the save has its outcome, so that is looked at behind them.
        """
        written = part.rank in self._place.records(part.key)
        return not written and self._place.outcome(part.key) is None

    def resume(self, message: AwaitParts) -> list[CommitFailed]:
        """Wait for the others of a part that is durable already."""
        key = message.part.key
        try:
            if self._place.outcome(key) is None:
                self._place.begin(message.part)
                if self._is_to_be_written(message.part):
                    self._place.end(key)
                    msg = f"the part of rank {message.part.rank} of save {key.number} is gone"
                    return [CommitFailed(number=message.number, error=PartsMissingError(msg))]
        except (CheckpointError, OSError) as error:
            return [CommitFailed(number=message.number, error=error)]
        own = DurablePart(number=message.number, part=message.part, began=message.began)
        self._gathers.wait_for(own)
        return []

    def miss(self, message: MissPart) -> list[PartDurable]:
        """Say that this rank has no part."""
        self._put_missing(message.part, message.why, message.cause)
        return [PartDurable(message.number)]

    def settle(self) -> None:
        """No more parts will come; as `GatherThread.settle`."""
        self._gathers.settle()
        if self._gathers.idle:
            self._place.close()

    def moved(self, key: SaveKey, checkpoint_id: str) -> None:
        """Note that a save is committed: its files have another path. The gather thread's."""
        if key == self._last:
            self._moved = self._root / checkpoint_id

    def _is_decided(self, part: SavePart) -> bool:
        with contextlib.suppress(CheckpointError, OSError):
            return self._place.outcome(part.key) is not None
        return False

    def _delete_files(self, job: CommitImage, part: SavePart) -> None:
        """Delete the files of a part without a record: no outcome may ever come to do it."""
        with contextlib.suppress(CheckpointError, OSError):
            folder = self._place.begin(part)
            if part.rank not in self._place.records(part.key):
                for image in job.files:
                    (folder / image.path).unlink(missing_ok=True)

    def _put_missing(self, part: SavePart, why: str, cause: MissingCause) -> None:
        part = replace(part, fingerprint=part.fingerprint or _NO_FINGERPRINT)
        record = PartRecord(part=part, host=self._host, missing=why, cause=cause)
        with contextlib.suppress(CheckpointError, OSError):  # then it is late for the others
            self._place.begin(part)
            self._place.put(record)
        with contextlib.suppress(CheckpointError, OSError):
            self._place.end(part.key)

    def _record(self, job: CommitImage, entries: list[FileEntry]) -> PartRecord:
        assert job.part is not None
        head = None
        if job.part.rank == 0:
            stored = self._space.stored(job.checkpoint_id)
            after = max(job.after, stored.generation if stored is not None else 0)
            head = SaveHead(checkpoint_id=job.checkpoint_id, after=after, facts=job.facts)
        return PartRecord(part=job.part, host=self._host, files=tuple(entries), head=head)

    def _fail(
        self, job: CommitImage, part: SavePart, error: Exception, evicted: list[str]
    ) -> CommitFailed:
        full = is_full(error)
        self._put_missing(part, str(error), "full" if full else "failed")
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(
                self._root,
                "refused",
                number=job.number,
                checkpoint=job.checkpoint_id,
                needed=self._size(job),
                disk=str(error),
                rank=part.rank,
            )
        error = refusal_of_part(job, part, error, self._root)
        return CommitFailed(number=job.number, error=error, evicted=len(evicted))

    # files

    def _write_or_send(
        self, job: CommitImage, arena: memoryview, folder: Path, evicted: list[str]
    ) -> None:
        """Make the part durable: on the disk, or else in the store.

        Raises:
            OSError: both refused.
        """
        try:
            entries = self._write(job, arena, folder, evicted)
            self._place.put(self._record(job, entries))
        except OSError as error:
            of_disk = isinstance(error, DirectoryUnusableError)
            if self.stream is None or (isinstance(error, CheckpointError) and not of_disk):
                raise
            sources = sources_in_arena(job, arena)
            entries = [one.entry for one in sources.values()]
            try:
                self.stream(self._record(job, entries), sources)
            except StoreError as refusal:
                msg = f"{error}. Sending it to the store instead failed: {refusal}"
                raise refused(msg, error) from error
        self.added = tuple(entries)

    def _write(
        self, job: CommitImage, arena: memoryview, folder: Path, evicted: list[str]
    ) -> list[FileEntry]:
        """Write the files, durably.

        Raises:
            DirectoryFullError: there is no room for them.
            OSError: the disk refused.
        """
        part = job.part
        assert part is not None
        until = time.monotonic() + _ROOM_S
        more = False
        evicts = part.rank == 0 or self.stream is not None  # a disk of its own
        if evicts:
            self._space.settle()
        while True:
            if evicts:
                self._evict(job, part, evicted, more=more)
            else:
                self._await_room(job, part, until)
            try:
                return self._write_files(job, part, arena, folder)
            except OSError as error:
                for image in job.files:
                    (folder / image.path).unlink(missing_ok=True)
                if not is_full(error) or time.monotonic() > until:
                    raise
                more = True  # other ranks write to this disk as well
                time.sleep(_POLL_S)

    def _evict(self, job: CommitImage, part: SavePart, evicted: list[str], *, more: bool) -> None:
        """Delete what may go, for the parts of all ranks, as each writes about as much."""
        size = self._size(job)
        ranks = part.world_size if self.stream is None else 1
        room = self._space.make(size * ranks, job.checkpoint_id, more=more)
        evicted += room.evicted
        if not room.fits:
            more = more and not room.evicted
            room = self._space.make(size, job.checkpoint_id, more=more)
            evicted += room.evicted
        if not room.fits:
            raise DirectoryFullError(no_room_for_part(job, part, room.reason))

    def _await_room(self, job: CommitImage, part: SavePart, until: float) -> None:
        size = self._size(job)
        waits = True
        while (disk := self._space.measure()).room < size:
            if not waits:
                reason = f"it needs {size:,} bytes, and {disk.describe()}"
                raise DirectoryFullError(no_room_for_part(job, part, reason))
            waits = self._may_get_room(part, until)  # before the next look, which may be the last

    def _may_get_room(self, part: SavePart, until: float) -> bool:
        """Whether rank 0 may still make room, which it does before it writes; waits a moment."""
        time.sleep(_POLL_S)
        return time.monotonic() < until and 0 not in self._place.records(part.key)

    def _size(self, job: CommitImage) -> int:
        assert job.part is not None
        size = job.part.block_bytes
        return planned((i.size for i in job.files if self._linkable(i, size) is None), size)

    def _write_files(
        self, job: CommitImage, part: SavePart, arena: memoryview, folder: Path
    ) -> list[FileEntry]:
        entries = []
        with ZipChecksums(arena) as checksums:
            for image in job.files:
                checksums.begin(image)
            memory = arena.toreadonly()
            for image in job.files:
                target = folder / check_member(image.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # of a killed worker; it may be a link
                entry = self._link(image, target, part.block_bytes)
                if entry is None:
                    checksums.finish(image)
                    end = image.offset + -(-image.size // BLOCK) * BLOCK
                    view, hasher = memory[image.offset : end], Hasher(part.block_bytes)
                    described = functools.partial(Hasher.entry, path=image.path)
                    entry = write_image(target, view, image.size, hasher, described)
                entries.append(entry)
        sync_folders(folder, [image.path for image in job.files])
        written = {}
        for image, entry in zip(job.files, entries, strict=True):
            path = folder / image.path
            written[image.content] = (path, entry, _inode(path))
        self._written, self._last, self._moved = written, part.key, None
        return entries

    def _linkable(
        self, image: FileImage, block_bytes: int
    ) -> tuple[list[Path], FileEntry, tuple[int, int]] | None:
        """Where the same bytes may be, which the last part has, with such blocks."""
        known = self._written.get(image.content)
        if known is None or (known[1].path, known[1].block_bytes) != (image.path, block_bytes):
            return None
        moved = [self._moved / image.path] if self._moved is not None else []
        return [known[0], *moved], known[1], known[2]

    def _link(self, image: FileImage, target: Path, block_bytes: int) -> FileEntry | None:
        """Link the same file of the last part; None if it is not there any more."""
        known = self._linkable(image, block_bytes)
        for place in known[0] if known is not None else ():
            assert known is not None
            with contextlib.suppress(OSError):  # it was renamed just now, or cannot be linked
                os.link(place, target)
                if _inode(target) == known[2]:
                    return known[1]
                target.unlink()
        return None


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
