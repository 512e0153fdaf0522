"""Find the job files of a checkpoint directory: files that belong to no checkpoint, such as logs.

A directory with a manifest is a checkpoint; files that are added to it later are ignored. Symbolic
links are not followed: their targets are found under their own names, or lie outside. Names that
begin with a dot, and those of `is_unfinished`, are skipped: they are still being written.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from bt_lightning.checkpoint_formats.sharded_folders import METADATA
from bt_lightning.localdir.directory_walk import MOST_FOLDERS, check_count, entries
from bt_lightning.path_layout import MANIFEST, MARKER, PROTECTION, safe_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TEMPORARY: Final = re.compile(r".*(\.(tmp|temp|part|partial|incomplete|swp)|~)|tmp-checkpoint-.*")
_RESERVED: Final = frozenset({MARKER, PROTECTION, "lost+found"})
MOST_FILES: Final = 250_000
"""Limit for one checkpoint directory: all are held in memory."""
_TOO_MANY: Final = f"there are more than {MOST_FILES:,} files: the others are not sent"
_GONE: Final = (FileNotFoundError, NotADirectoryError)


class Stamp(NamedTuple):
    """Changes whenever a file does: equal stamps mean that nobody wrote to it in between."""

    size: int
    """Bytes."""
    mtime_ns: int
    ctime_ns: int
    """No program can set it: so it reveals a write after which `mtime` was set back."""
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file with this `stat` result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(slots=True)
class JobFiles:
    """The job files that one walk found."""

    files: dict[str, Stamp] = field(default_factory=dict)
    """Posix path below the directory -> stamp."""
    metadata: dict[str, Stamp] = field(default_factory=dict)
    """The same for hidden files that are part of other programs' checkpoints, and no job files."""
    excluded: set[str] = field(default_factory=set)
    """Folders with a file that is not wanted."""
    refused: dict[str, str] = field(default_factory=dict)
    """Printable path -> reason, for what cannot be read or cannot be an object of a store."""


def find_job_files(root: Path, wanted: Callable[[str], bool] = lambda _: True) -> JobFiles:
    """The regular files below `root` that belong to no checkpoint and for which `wanted` is true.

    Called in the worker. A directory that vanishes meanwhile counts as empty.
    """
    found = JobFiles()
    folders = [""]
    while folders:
        folder = folders.pop()
        directory = os.path.join(root, folder)  # noqa: PTH118 - faster, for tens of thousands
        if os.path.lexists(f"{directory}/{MANIFEST}"):
            continue
        try:
            for entry in entries(directory):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_left_out(entry.name):
                    _take_metadata(found, entry, path)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    check_count(directory, len(folders), MOST_FOLDERS, "folders")
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
    """Whether the name is one that programs use for files that are still being written."""
    return _TEMPORARY.fullmatch(name) is not None


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or is_unfinished(name) or name in _RESERVED


def _take_metadata(found: JobFiles, entry: os.DirEntry[str], path: str) -> None:
    if entry.name == METADATA and entry.is_file(follow_symlinks=False):
        with contextlib.suppress(*_GONE):
            found.metadata[path] = Stamp.of(entry.stat(follow_symlinks=False))


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
    else:
        found.excluded.add(path.rpartition("/")[0])
