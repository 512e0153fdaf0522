"""A checkpoint of a store to a directory on this disk: several ranges at a time, each verified.

Files are preallocated, since writing into holes is what is slow (half the speed, and less), and
written past the page cache where the file system lets us: nobody reads them soon, and a buffered
write leaves the disk's work to the fsync. Nothing is remembered of what has arrived: a later call
reads what is there and compares it with the manifest.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DirectoryFullError
from bt_lightning.localdir.direct_io import BLOCK, reserve
from bt_lightning.localdir.disk_space import FULL, measure, planned, spare
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.store.transfer.byte_ranges import Range, ranges, tail
from bt_lightning.store.transfer.checkpoint_reader import is_block, read_verified
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.localdir.disk_space import DiskSpace
    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_REFUSED: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_DIRECT_BYTES = 8 * 1024 * 1024
"""Ranges from this size on are written past the page cache."""


def download_files(
    place: CheckpointReader, folder: Path, entries: tuple[FileEntry, ...] | None = None
) -> int:
    """Bring every file of `place` to `folder`, verified and durable; return the bytes fetched.

    With `entries`, only those of its files.

    What an earlier call left in `folder` is kept as far as it is right. Memory: `connections`
    times `piece_bytes` of `place`. Called in the process that fetches, by one thread.

    Raises:
        DirectoryFullError: it does not fit; said before the first byte is asked for.
        CheckpointCorruptError, CheckpointNotFoundError: it is not what its manifest says.
        StoreError: the store refused.
        OSError: the disk refused.
    """
    entries = place.manifest.files if entries is None else entries
    for entry in entries:
        place.check(entry)
    _check_room(place, folder, entries)
    try:
        return _download(place, folder, entries)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _full(place, folder, sum(entry.size for entry in entries)) from error


def check_room(place: CheckpointReader, disk: DiskSpace) -> None:
    """Raise `DirectoryFullError` unless the disk takes this checkpoint, and then another like it.

    What a run resumed from stays on the disk: it must leave room for what the run saves.
    """
    needed = planned(entry.size for entry in place.manifest.files)
    if 2 * needed > disk.room:
        msg = (
            f"the checkpoint {place.name} takes {needed:,} bytes, and as much again has to be free"
            f" for the next one; {disk.describe()}"
        )
        raise DirectoryFullError(msg)


def verify_bytes(place: CheckpointReader) -> None:
    """Read every byte of a checkpoint, and keep nothing.

    Raises:
        CheckpointCorruptError, CheckpointNotFoundError: it is not what its manifest says.
        StoreError: the store refused.
    """
    scratch = Scratch()
    for entry in place.manifest.files:
        place.check(entry)

    def read(wanted: Range) -> None:
        view = scratch.view(wanted.size)
        read_verified(place, wanted.entry, wanted.offset, [view])

    parts = [part for e in place.manifest.files for part in tail(e, 0, place.piece_bytes)]
    in_parallel(read, parts, place.connections)


def _download(place: CheckpointReader, folder: Path, entries: tuple[FileEntry, ...]) -> int:
    scratch = Scratch()
    missing: list[Range] = []
    for entry in entries:
        blocks = _prepare(folder / entry.path, entry, scratch, place.connections)
        missing += ranges(entry, blocks, place.piece_bytes)
    missing.sort(key=lambda wanted: -wanted.size)  # a long one that began last would end alone

    def bring(wanted: Range) -> None:
        view = scratch.view(-(-wanted.size // BLOCK) * BLOCK)
        read_verified(place, wanted.entry, wanted.offset, [view[: wanted.size]])
        _write(folder / wanted.entry.path, wanted, view)

    in_parallel(bring, missing, place.connections)
    in_parallel(partial(_finish, folder), entries, place.connections)
    return sum(wanted.size for wanted in missing)


def _prepare(file: Path, entry: FileEntry, scratch: Scratch, threads: int) -> list[int]:
    """Make `file` as long as it will be, every byte allocated; return the blocks it lacks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    try:
        before = os.fstat(descriptor).st_size
        reserve(descriptor, entry.size)
        os.ftruncate(descriptor, entry.size)
        if not before:
            return list(range(len(entry.blocks)))

        def lacks(block: int) -> bool:
            view = scratch.view(BLOCK_BYTES)
            count = os.preadv(descriptor, [view], block * BLOCK_BYTES)
            return not is_block(entry, block, view[:count])

        blocks = range(len(entry.blocks))
        wrong = in_parallel(lacks, blocks, threads)
        return [block for block in blocks if wrong[block]]
    finally:
        os.close(descriptor)


def _write(file: Path, wanted: Range, view: memoryview) -> None:
    """Write a range; `view` is page-aligned and reaches to the next whole page."""
    if wanted.size >= _DIRECT_BYTES and _written(file, wanted.offset, view, os.O_DIRECT):
        return
    _written(file, wanted.offset, view[: wanted.size], 0)


def _written(file: Path, offset: int, view: memoryview, flag: int) -> bool:
    """Write in one way; False if the file system refuses that way."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flag)
    except OSError as error:
        if flag and error.errno in _REFUSED:
            return False
        raise
    try:
        while view:
            count = os.pwrite(descriptor, view, offset)
            offset, view = offset + count, view[count:]
    except OSError as error:
        if flag and error.errno in _REFUSED:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def _finish(folder: Path, entry: FileEntry) -> None:
    """Cut what a direct write left beyond the end; make the file durable."""
    descriptor = os.open(folder / entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != entry.size:
            os.ftruncate(descriptor, entry.size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(place: CheckpointReader, folder: Path, entries: tuple[FileEntry, ...]) -> None:
    """Raise `DirectoryFullError` unless the bytes that are not allocated yet will fit."""
    needed = sum(entry.size - _allocated(folder / entry.path) for entry in entries)
    if needed > measure(folder, None).room:
        raise _full(place, folder, needed)


def _allocated(file: Path) -> int:
    try:
        status = file.lstat()
    except OSError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


def _full(place: CheckpointReader, folder: Path, needed: int) -> DirectoryFullError:
    disk = measure(folder, None)
    return DirectoryFullError(
        f"the checkpoint {place.name} does not fit on the volume of {folder}: it needs"
        f" {max(needed, 0) + spare(disk.size):,} more bytes, {disk.free:,} are free. Free some"
        " space, or use another BT_CHECKPOINT_DIR"
    )
