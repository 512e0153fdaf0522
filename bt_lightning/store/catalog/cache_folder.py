"""The folder of the cache of manifests: where it is, how large it may become, what is in it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_CACHED_BYTES: Final = 256_000_000
"""Of all files of the cache: those that were written first are deleted above it."""
_MOST_FILES: Final = 1000
_PREFIX: Final = "manifests-"
_DRAFT_S: Final = 3600.0
"""An older draft is one of a process that died."""


@dataclass(frozen=True, slots=True)
class CachedManifests:
    """What the cache of manifests takes."""

    folder: Path
    number: int
    """Files: one for each job, or other part of a store, that was listed."""
    size: int
    """Bytes."""


def user_cache(environ: Mapping[str, str]) -> Path | None:
    """This user's cache directory for this package (XDG Base Directory); None if unknown."""
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # a relative one is to be ignored, says the specification
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        base = f"{home}/.cache"
    return Path(base) / "bt_lightning"


def cache_file(folder: Path, prefix_url: bytes) -> Path:
    """The file of one prefix of one store."""
    return folder / f"{_PREFIX}{hashlib.blake2b(prefix_url, digest_size=16).hexdigest()}"


def cached_manifests(folder: Path) -> CachedManifests:
    """The files of the cache in `folder`.

    Raises:
        OSError: the folder cannot be read.
    """
    sizes = [size for _, size, _ in _files(folder)]
    return CachedManifests(folder, len(sizes), sum(sizes))


def delete_cached_manifests(folder: Path) -> CachedManifests:
    """Delete the files of the cache in `folder`; the next listings read the store.

    Raises:
        OSError: the folder cannot be read, or a file not be deleted.
    """
    found = cached_manifests(folder)
    for _, _, path in _files(folder):
        path.unlink(missing_ok=True)
    return found


def bound_folder(kept: Path) -> None:
    """Delete the oldest files beside `kept` until all are within the bounds, and old drafts.

    Raises:
        OSError: the folder cannot be read, or a file not be deleted.
    """
    for draft in kept.parent.glob(f".{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if draft.lstat().st_mtime < time.time() - _DRAFT_S:
                draft.unlink()
    files = sorted(_files(kept.parent), reverse=True)
    number, size = 0, 0
    for _, own, path in sorted(files, key=lambda one: one[2] != kept):
        number, size = number + 1, size + own
        if path != kept and (number > _MOST_FILES or size > MOST_CACHED_BYTES):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Time of the last write, bytes and path of each file."""
    found = []
    for path in folder.glob(f"{_PREFIX}*") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            found.append((status.st_mtime, status.st_size, path))
    return found
