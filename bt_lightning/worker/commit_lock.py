"""The lock of whoever commits to a directory, and deletes from it: a new run waits for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.safe_open import open_own

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE_S = 0.02


class CommitLock:
    """One process's hold on it. The kernel drops it with the process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor: int | None = None
        self._changing = threading.Lock()

    def take(self) -> None:
        """Have it until `give_up`; waits for who has it. Called by one thread."""
        descriptor = self._opened()
        lock(descriptor, fcntl.LOCK_EX)
        with self._changing:
            self._descriptor = descriptor

    def give_up(self) -> None:
        """Let a new run begin; waits for what is done in a `held` block."""
        with self._changing:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Whether this process has it while the block lasts: it is taken if it is free."""
        with self._changing:
            if self._descriptor is not None:
                yield True
                return
            descriptor = self._opened()
            try:
                yield try_lock(descriptor)
            finally:
                os.close(descriptor)

    def _opened(self) -> int:
        (self._root / DOT_DIR).mkdir(parents=True, exist_ok=True)
        return open_own(commit_lock(self._root), os.O_RDWR | os.O_CREAT)


def wait_for_commits(root: Path, limit_s: float) -> bool:
    """Wait until no earlier run's worker commits under `root`: it may hold its newest checkpoint.

    False if one still does at the limit, or its training process still lives.

    Called in the training process before it looks for what to resume from.
    """
    until = time.monotonic() + limit_s
    try:
        descriptor = open_own(commit_lock(root), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        while not (free := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(_PATIENCE_S)
        return free
    finally:
        os.close(descriptor)


def commit_lock(root: Path) -> Path:
    """The file whose lock says that a worker commits under `root`, or may be told to."""
    return root / DOT_DIR / "commit.lock"
