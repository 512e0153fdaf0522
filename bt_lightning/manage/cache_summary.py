"""What lies in a job's cache folder on this machine: files, folders and their sizes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.job_caches import PROJECT_CACHE, jobs_cache

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A file or folder of a cache."""

    path: str
    """Relative to the cache folder."""
    size: int
    """Bytes; of a folder, those of all files in it."""
    modified: float
    """Seconds of the epoch."""
    kind: Literal["file", "directory", "symlink", "other"]
    permissions: str
    """As `ls -l` shows them."""


def cache_folder(environ: Mapping[str, str], named: Path | None) -> Path:
    """The cache folder that is meant: named, or of the environment, or where `run` makes it.

    Raises:
        CheckpointNotFoundError: there is no such folder.
    """
    base = environ.get("BT_RW_CACHE_DIR")
    folder = named or Path(
        environ.get("BT_PROJECT_CACHE_DIR") or Path(base or jobs_cache(environ)) / PROJECT_CACHE
    )
    if not folder.is_dir():
        msg = (
            f"there is no cache at {folder}: a job has one if its config.py enables it, with"
            " CacheConfig(enabled=True). Name another folder with --path"
        )
        raise CheckpointNotFoundError(msg)
    return folder


def summarize(folder: Path) -> list[CacheEntry]:
    """Every file and folder below `folder`; links are not followed, what vanishes is left out."""
    entries: list[CacheEntry] = []
    sizes: dict[str, int] = {}
    for place, folders, files in os.walk(folder, topdown=False):
        total = 0
        for name in (*folders, *files):
            path = os.path.join(place, name)  # noqa: PTH118 - a name may be any bytes
            try:
                info = os.lstat(path)
            except OSError:
                continue
            kind = _kind(info.st_mode)
            size = sizes.pop(path, 0) if kind == "directory" else info.st_size
            total += size
            shown = os.path.relpath(path, folder).encode(errors="replace").decode()
            permissions = stat.filemode(info.st_mode)
            entries.append(CacheEntry(shown, size, info.st_mtime, kind, permissions))
        sizes[place] = total
    return entries


def _kind(mode: int) -> Literal["file", "directory", "symlink", "other"]:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "symlink"
    return "file" if stat.S_ISREG(mode) else "other"
