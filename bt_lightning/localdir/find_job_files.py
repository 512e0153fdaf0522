"""The files of a checkpoint directory that belong to no checkpoint: logs, results, other folders.

A directory with a manifest is a checkpoint, whole, and what is added to it later is not looked at.
Symbolic links are not followed: what they name is there under its own name, or not of this
directory. Names that begin with a dot, and those of `is_unfinished`, are of files under way.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from bt_lightning.layout import MANIFEST, MARKER, PROTECTION, safe_parts
from bt_lightning.localdir.directory_walk import MOST_FOLDERS, check_count, entries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TEMPORARY: Final = re.compile(r".*(\.(tmp|temp|part|partial|incomplete|swp)|~)|tmp-checkpoint-.*")
_RESERVED: Final = frozenset({MARKER, PROTECTION, "lost+found"})
MOST_FILES: Final = 250_000
"""Of one directory: all are held in memory."""
_TOO_MANY: Final = f"there are more than {MOST_FILES:,} files: the others are not sent"
_GONE: Final = (FileNotFoundError, NotADirectoryError)


class Stamp(NamedTuple):
    """What changes when a file does: equal ones mean that nobody wrote to it in between."""

    size: int
    """Bytes."""
    mtime_ns: int
    ctime_ns: int
    """No program can set it: a file that was written and got its old `mtime` back differs."""
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """That of a file whose `status` was asked for."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(slots=True)
class JobFiles:
    """One look at a directory."""

    files: dict[str, Stamp] = field(default_factory=dict)
    """By posix path below the directory."""
    refused: dict[str, str] = field(default_factory=dict)
    """What can be no object of a store, or not be read, printable; and why."""


def find_job_files(root: Path, wanted: Callable[[str], bool] = lambda _: True) -> JobFiles:
    """The regular files below `root` that belong to no checkpoint and that are `wanted`.

    Called in the worker. A directory that vanishes meanwhile is an empty one.
    """
    found = JobFiles()
    folders = [""]
    while folders:
        folder = folders.pop()
        place = os.path.join(root, folder)  # noqa: PTH118 - ten thousands
        if os.path.lexists(f"{place}/{MANIFEST}"):
            continue
        try:
            for entry in entries(place):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if (
                    entry.name.startswith(".")
                    or is_unfinished(entry.name)
                    or entry.name in _RESERVED
                ):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    check_count(place, len(folders), MOST_FOLDERS, "folders")
                elif entry.is_file(follow_symlinks=False):
                    _take(found, entry, path, wanted)
                if len(found.files) > MOST_FILES:
                    found.refused[ascii(folder)[1:-1] or "."] = _TOO_MANY
                    return found
        except _GONE:
            continue
        except OSError as error:
            found.refused[ascii(folder)[1:-1] or "."] = error.strerror or str(error)
    return found


def is_unfinished(name: str) -> bool:
    """Whether a file or folder of that name is not finished, as its writer says."""
    return _TEMPORARY.fullmatch(name) is not None


def _take(
    found: JobFiles, entry: os.DirEntry[str], path: str, wanted: Callable[[str], bool]
) -> None:
    if not safe_parts(path):
        name = ascii(path)[1:-1]
        if wanted(name):
            found.refused[name] = "a store cannot have an object of such a name"
        return
    if wanted(path):
        try:
            status = entry.stat(follow_symlinks=False)
        except _GONE:
            return
        if stat.S_ISREG(status.st_mode):
            found.files[path] = Stamp.of(status)
