"""How much room there is for checkpoints: what the volume has free, and what a budget leaves.

Measured when it is asked for, never remembered: other programs write to the volume too.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the kernel says of a volume, or a quota, that is full."""
_GONE: Final = (FileNotFoundError, NotADirectoryError)
FEW_FILES: Final = 100
"""A checkpoint may need so many; with fewer, that is why there is no room, whatever is free."""
_PAGE: Final = 4096
_SECTOR: Final = 512
_LEAST_SPARE: Final = 64 * 1024
_MOST_SPARE: Final = 16 * 1024 * 1024
_SPARE_PART: Final = 64
_DIGEST_LINE: Final = 48
_MANIFEST_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """One look at the volume of a checkpoint directory; all in bytes."""

    free: int
    """Free on the volume, for this user."""
    size: int
    """Of the volume."""
    used: int = 0
    """Taken below the checkpoint directory; measured only if there is a budget."""
    budget: int | None = None
    """What may be taken there."""
    files: int | None = None
    """How many more files and directories the volume takes; None if it does not say."""

    @property
    def room(self) -> int:
        """What may be written, and some left for small files of ours; less than 0 if none."""
        room = self.free - spare(self.size)
        if self.budget is not None:
            room = min(room, self.budget - spare(self.budget) - self.used)
        return room

    def describe(self) -> str:
        """The numbers, for people."""
        said = f"{self.free:,} of {self.size:,} bytes are free on the volume"
        if self.files is not None and self.files < FEW_FILES:
            said += f", which takes {self.files} more files of any size: it has no more inodes"
        if self.budget is not None:
            said += f", {self.used:,} of the budget of {self.budget:,} are used"
        return said


def measure(root: Path, budget: int | None) -> DiskSpace:
    """Look at the volume of `root` and, with a budget, at all that lies below it.

    Raises:
        OSError: the directory cannot be read.
    """
    volume = os.statvfs(root)
    used = usage(root) if budget is not None else 0
    size = volume.f_blocks * volume.f_frsize
    files = volume.f_favail if volume.f_files else None
    return DiskSpace(volume.f_bavail * volume.f_frsize, size, used, budget, files)


def spare(size: int) -> int:
    """Bytes of a volume, or budget, of `size` bytes that no checkpoint takes.

    Requests to remove, events and manifests must be written when there is room for nothing else.
    """
    return max(_LEAST_SPARE, min(_MOST_SPARE, size // _SPARE_PART))


def usage(root: Path) -> int:
    """Bytes that the files and directories below `root` take on the volume.

    A file of several names counts once; one that is larger than what is written of it, as much as
    is written. Symbolic links are not followed. What lies in a folder that cannot be read, as
    `lost+found`, is not counted: nothing of ours does.
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
        return 0  # it went meanwhile
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        if (status.st_dev, status.st_ino) in seen:
            return 0
        seen.add((status.st_dev, status.st_ino))
    return status.st_blocks * _SECTOR


def planned(sizes: Iterable[int]) -> int:
    """Bytes that a checkpoint of files of these sizes will take, its manifest included; no less."""
    total = _MANIFEST_BYTES
    for size in sizes:
        blocks = -(-size // BLOCK_BYTES)
        total += -(-size // _PAGE) * _PAGE + _PAGE + blocks * _DIGEST_LINE
    return total


def is_full(error: BaseException) -> bool:
    """Whether `error` is the kernel's word that there is no room."""
    return isinstance(error, OSError) and error.errno in FULL
