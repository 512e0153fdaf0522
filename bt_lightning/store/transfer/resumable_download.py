"""Download a checkpoint from a store to a local directory, in parallel verified ranges.

Files are preallocated, since writing into holes takes twice as long or more, and written with
`O_DIRECT` where the file system allows it: they are not read soon, and a buffered write leaves the
disk's work to the fsync. No journal says what has arrived: a later call reads what is there and
compares it with the manifest.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DirectoryFullError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.direct_io import BLOCK, reserve
from bt_lightning.localdir.disk_space import FULL, measure, planned, spare
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.store.transfer.block_verifier import wrong_blocks
from bt_lightning.store.transfer.byte_ranges import Range, ranges, ranges_to_end
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.disk_space import DiskSpace
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_REFUSED: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_DIRECT_BYTES = 8 * 1024 * 1024
"""Ranges of this size and more are written with `O_DIRECT`."""


def download_files(
    reader: CheckpointReader, folder: Path, entries: Sequence[FileEntry] | None = None
) -> int:
    """Download every file of a checkpoint to `folder`, verified and durable; return the bytes read.

    With `entries`, only those files. Blocks that an earlier call left in `folder` are kept if they
    are right. Memory in use: `connections` times `piece_bytes` of `reader`. Called by one thread.

    Raises:
        DirectoryFullError: the files do not fit; checked before the first byte is read.
        CheckpointCorruptError, CheckpointNotFoundError: the files differ from the manifest.
        StoreError: the store refused.
        OSError: the disk refused.
    """
    entries = reader.manifest.files if entries is None else entries
    for entry in entries:
        reader.check(entry)
    _check_room(reader, folder, entries)
    try:
        return _download(reader, folder, entries)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _full(reader, folder, sum(entry.size for entry in entries)) from error


def check_room(reader: CheckpointReader, disk: DiskSpace) -> None:
    """Raise `DirectoryFullError` unless the checkpoint fits twice.

    What a run resumed from stays on the disk, and must leave room for the run's own checkpoints.
    """
    needed = planned(entry.size for entry in reader.manifest.files)
    if 2 * needed > disk.room:
        msg = (
            f"the checkpoint {reader.name} takes {needed:,} bytes, and as much again has to be free"
            f" for the next one; {disk.describe()}"
        )
        raise DirectoryFullError(msg)


def verify_bytes(reader: CheckpointReader, files: Sequence[FileEntry] | None = None) -> None:
    """Read and verify every byte of a checkpoint, or of some of its files; keep nothing.

    Raises:
        CheckpointCorruptError, CheckpointNotFoundError: the files differ from the manifest.
        StoreError: the store refused.
    """
    scratch = Scratch()
    wanted = reader.manifest.files if files is None else files
    for entry in wanted:
        reader.check(entry)

    def read(part: Range) -> None:
        view = scratch.view(part.size)
        read_verified(reader, part.entry, part.offset, [view])

    parts = [part for entry in wanted for part in ranges_to_end(entry, 0, reader.piece_bytes)]
    in_parallel(read, parts, reader.connections)


def _download(reader: CheckpointReader, folder: Path, entries: Sequence[FileEntry]) -> int:
    scratch = Scratch()
    missing: list[Range] = []
    for entry in entries:
        blocks = _prepare(folder / entry.path, entry, scratch, reader.connections)
        missing += ranges(entry, blocks, reader.piece_bytes)
    missing.sort(key=lambda wanted: -wanted.size)  # a long range that starts last would end alone

    def download(wanted: Range) -> None:
        view = scratch.view(-(-wanted.size // BLOCK) * BLOCK)
        read_verified(reader, wanted.entry, wanted.offset, [view[: wanted.size]])
        _write(folder / wanted.entry.path, wanted, view)

    in_parallel(download, missing, reader.connections)
    in_parallel(partial(_finish, folder), entries, reader.connections)
    return sum(wanted.size for wanted in missing)


def _prepare(file: Path, entry: FileEntry, scratch: Scratch, threads: int) -> list[int]:
    """Allocate `file` at its final size; return the numbers of the blocks that it lacks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    try:
        before = os.fstat(descriptor).st_size
        reserve(descriptor, entry.size)
        os.ftruncate(descriptor, entry.size)
        if not before:
            return list(range(len(entry.blocks)))

        def lacks(offset: int) -> list[int]:
            view = scratch.view(min(BLOCK_BYTES, entry.size - offset))
            size = entry.block_bytes
            if os.preadv(descriptor, [view], offset) < len(view):
                return list(range(offset // size, -(-(offset + len(view)) // size)))
            return wrong_blocks(entry, offset, [view])

        offsets = range(0, entry.size, BLOCK_BYTES)
        return [block for wrong in in_parallel(lacks, offsets, threads) for block in wrong]
    finally:
        os.close(descriptor)


def _write(file: Path, wanted: Range, view: memoryview) -> None:
    """Write a range; `view` is page-aligned and padded to a whole page."""
    if wanted.size >= _DIRECT_BYTES and _try_write(file, wanted.offset, view, os.O_DIRECT):
        return
    _try_write(file, wanted.offset, view[: wanted.size], 0)


def _try_write(file: Path, offset: int, view: memoryview, flag: int) -> bool:
    """Write with the open(2) flag `flag`; False if the file system refuses it."""
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
    """Truncate the padding of a direct write; make the file durable."""
    descriptor = os.open(folder / entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != entry.size:
            os.ftruncate(descriptor, entry.size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(reader: CheckpointReader, folder: Path, entries: Sequence[FileEntry]) -> None:
    """Raise `DirectoryFullError` unless the bytes that are not allocated yet fit."""
    needed = sum(entry.size - _allocated(folder / entry.path) for entry in entries)
    if needed > measure(folder, None).room:
        raise _full(reader, folder, needed)


def _allocated(file: Path) -> int:
    try:
        status = file.lstat()
    except OSError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


def _full(reader: CheckpointReader, folder: Path, needed: int) -> DirectoryFullError:
    disk = measure(folder, None)
    return DirectoryFullError(
        f"the checkpoint {reader.name} does not fit on the volume of {folder}: it needs"
        f" {max(needed, 0) + spare(disk.size):,} more bytes, {disk.free:,} are free. Free some"
        " space, or use another BT_CHECKPOINT_DIR"
    )
