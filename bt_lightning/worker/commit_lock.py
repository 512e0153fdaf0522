"""The lock of the worker that commits to a checkpoint directory and deletes from it.

A new run waits for it before it looks for a checkpoint to resume from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL_S = 0.02


class CommitLock:
    """One process's lock of one directory. The kernel drops it with the process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._descriptor: int | None = None
        self._guard = threading.Lock()

    def acquire(self) -> None:
        """Hold the lock until `release`; waits for another holder. Called by the commit thread."""
        descriptor = self._open()
        lock(descriptor, fcntl.LOCK_EX)
        with self._guard:
            self._descriptor = descriptor

    def release(self) -> None:
        """Let a new run begin; waits for the end of a `held` block."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Yield whether this process holds the lock in the block; takes it if it is free."""
        with self._guard:
            if self._descriptor is not None:
                yield True
                return
            descriptor = self._open()
            try:
                yield try_lock(descriptor)
            finally:
                os.close(descriptor)

    def _open(self) -> int:
        (self.root / DOT_DIR).mkdir(parents=True, exist_ok=True)
        return open_own(commit_lock(self.root), os.O_RDWR | os.O_CREAT)


def wait_for_commits(root: Path, limit_s: float) -> bool:
    """Wait until no earlier run's worker commits under `root`: it may hold its newest checkpoint.

    Returns False if that worker, or its training process, still lives after `limit_s` seconds.

    Called in the training process before it looks for what to resume from.
    """
    until = time.monotonic() + limit_s
    try:
        descriptor = open_own(commit_lock(root), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        while not (free := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(_POLL_S)
        return free
    finally:
        os.close(descriptor)


def commit_lock(root: Path) -> Path:
    """The lock file of `root`: locked while a worker commits there, or may have to."""
    return root / DOT_DIR / "commit.lock"
