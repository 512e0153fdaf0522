"""Locks that keep a checkpoint on the disk while it is read.

A reader holds a shared `flock` on the directory, which the kernel drops when its process dies. An
eviction takes the lock exclusively first, and skips the directory if a reader holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.fsync import open_directory

if TYPE_CHECKING:
    from pathlib import Path

_TRIES = 8


def hold_for_reading(path: Path) -> int | None:
    """A descriptor that keeps the directory `path` from being evicted until it is closed.

    None if there is no such directory. Files must be opened by `path` after this call.
    """
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        lock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # deleted or replaced before the lock was taken
    return None


def delete_unless_read(path: Path, root: Path) -> bool:
    """Delete the directory `path` unless a reader holds it; return whether it is gone."""
    try:
        with open_directory(path) as descriptor:
            if not try_lock(descriptor):
                return False
            delete_directory(path, root)
    except FileNotFoundError:
        return True
    return True
