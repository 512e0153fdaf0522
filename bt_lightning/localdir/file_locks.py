"""File locks that the kernel drops when their process dies, however it dies. Source: flock(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NAMING = threading.Lock()
_TIMEOUT_S = 60.0
"""Longest wait for the lock of `naming`, which others hold for the time of a rename."""
_POLL_S = 0.002


def try_lock(descriptor: int) -> bool:
    """Take an exclusive lock until this process ends; False if another process has it.

    On a file system without locks it is always free: only one process may write there.
    """
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, operation: int) -> None:
    """Call flock(2); do nothing on a file system without locks."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextlib.contextmanager
def naming(root: Path) -> Iterator[None]:
    """Hold the lock for renames under `root`, against all threads and processes.

    The lock is on the dot folder, not on `root`, which may be a temporary that its owner locks.

    Raises:
        TimeoutError: another process held the lock for a minute: it may be suspended.
    """
    with _NAMING, folder_locked(root / DOT_DIR):
        yield


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if it is missing, against all processes.

    Raises:
        TimeoutError: another process held the lock for a minute: it may be suspended.
    """
    descriptor = _lock_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_folder(folder: Path) -> int:
    """Create and lock `folder`; return its descriptor. Waits up to `_TIMEOUT_S`."""
    until = time.monotonic() + _TIMEOUT_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _try_lock_folder(folder)
        if descriptor is not None:
            return descriptor
        if time.monotonic() > until:
            msg = f"another process has been renaming in {folder.parent}"
            raise TimeoutError(errno.ETIMEDOUT, f"{msg} for {_TIMEOUT_S:g} s", str(folder))
        time.sleep(_POLL_S)


def _try_lock_folder(folder: Path) -> int | None:
    gate, mine = None, False
    try:
        gate = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # a file system without locks has one writing process
        mine = try_lock(gate) and os.path.samestat(os.fstat(gate), folder.stat())
    except FileNotFoundError:  # another process removed the empty folder
        if not folder.parent.exists():
            raise
    finally:
        if gate is not None and not mine:
            os.close(gate)
    return gate if mine else None
