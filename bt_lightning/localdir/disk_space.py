"""Measure the room for checkpoints: what is free on the volume, and what a budget leaves.

Measured at each call, never cached: other programs write to the volume too.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errno values of a volume, or a quota, that is full."""
_GONE: Final = (FileNotFoundError, NotADirectoryError)
FEW_FILES: Final = 100
"""Files that a checkpoint may need: with fewer free inodes, those are what is missing."""
_PAGE: Final = 4096
_SECTOR: Final = 512
_LEAST_SPARE: Final = 64 * 1024
_MOST_SPARE: Final = 16 * 1024 * 1024
_SPARE_PART: Final = 64
_DIGEST_LINE: Final = 48
_MANIFEST_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """One measurement of the volume of a checkpoint directory, in bytes."""

    free: int
    """Free on the volume for this user."""
    size: int
    """Size of the volume."""
    used: int = 0
    """Used below the checkpoint directory; measured only if there is a budget."""
    budget: int | None = None
    """Limit for `used`; None for no limit."""
    files: int | None = None
    """Number of free inodes; None if the volume does not say."""

    @property
    def room(self) -> int:
        """Bytes that a checkpoint may take: free less what is spared; negative if there is none."""
        room = self.free - spare(self.size)
        if self.budget is not None:
            room = min(room, self.budget - spare(self.budget) - self.used)
        return room

    def describe(self) -> str:
        """The numbers, for messages."""
        text = f"{self.free:,} of {self.size:,} bytes are free on the volume"
        if self.files is not None and self.files < FEW_FILES:
            text += f", which takes {self.files} more files of any size: it has no more inodes"
        if self.budget is not None:
            text += f", {self.used:,} of the budget of {self.budget:,} are used"
        return text


def measure(root: Path, budget: int | None) -> DiskSpace:
    """Measure the volume of `root` and, with a budget in bytes, all files below it.

    Raises:
        OSError: the directory cannot be read.
    """
    volume = os.statvfs(root)
    used = usage(root) if budget is not None else 0
    size = volume.f_blocks * volume.f_frsize
    files = volume.f_favail if volume.f_files else None
    return DiskSpace(volume.f_bavail * volume.f_frsize, size, used, budget, files)


def spare(size: int) -> int:
    """Bytes of a volume or budget of `size` bytes that are reserved: no checkpoint may take them.

    Removal requests, events and manifests must be written when there is room for nothing else.
    """
    return max(_LEAST_SPARE, min(_MOST_SPARE, size // _SPARE_PART))


def usage(root: Path) -> int:
    """Bytes that the files and directories below `root` take on the volume.

    A file with several hard links counts once; a sparse file counts its allocated blocks. Symbolic
    links are not followed. Folders that cannot be read, such as `lost+found`, are not counted.
    """
    seen: set[tuple[int, int]] = set()
    folders, total = [str(root)], 0
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listed:
                for entry in listed:
                    total += _taken(entry, seen)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            if folder == str(root) and not isinstance(error, _GONE):
                raise
    return total


def _taken(entry: os.DirEntry[str], seen: set[tuple[int, int]]) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
    except _GONE:
        return 0  # deleted meanwhile
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        if (status.st_dev, status.st_ino) in seen:
            return 0
        seen.add((status.st_dev, status.st_ino))
    return status.st_blocks * _SECTOR


def planned(sizes: Iterable[int], block_bytes: int = BLOCK_BYTES) -> int:
    """Upper bound of the bytes that a checkpoint with files of these sizes takes on the disk."""
    total = _MANIFEST_BYTES
    for size in sizes:
        blocks = -(-size // block_bytes)
        total += -(-size // _PAGE) * _PAGE + _PAGE + blocks * _DIGEST_LINE
    return total


def is_full(error: BaseException) -> bool:
    """Whether `error` says that the volume or the quota is full."""
    return isinstance(error, OSError) and error.errno in FULL
