"""Whose turn it is to publish from a directory: one worker's at a time, and a trainer's first.

`worker.lock` is held by the worker whose turn it is, `worker.want` by those of a training process
that wait for it. A standby worker takes its turn while nobody holds either, and gives it up when
somebody holds the second. `worker.standby` is held by a standby worker as long as it lives, and
says what it sends to: a training that ends there need not wait for the store. All are held by
flock(2): the kernel drops them with their process, so there is no clock, and nothing is left by a
kill.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.disk_space import is_full
from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.safe_open import open_own

if TYPE_CHECKING:
    from pathlib import Path


_STANDBY: Final = "worker.standby"


class PublisherLockWantedError(Exception):
    """Raised in a standby worker, between two steps of a unit, when a trainer's wants its turn."""


class PublisherLock:
    """One worker's claim. One thread calls its methods; `held` is read by others."""

    def __init__(self, root: Path, *, standby: bool) -> None:
        self._folder = root / DOT_DIR
        self._standby = standby
        self._lock: int | None = None
        self._want: int | None = None

    @property
    def held(self) -> bool:
        """Whether this worker, and no other, publishes from the directory."""
        return self._lock is not None

    def take(self) -> bool:
        """Have the turn, if that is possible at once; never waits."""
        if self._lock is not None:
            return True
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._standby:
            if self._others_want():
                return False
        elif self._want is None:
            want = self._opened("worker.want")
            if _locked(want, fcntl.LOCK_SH):
                self._want = want
            else:
                os.close(want)  # a standby worker looks just now; the next try has it
        mine = self._opened("worker.lock")
        # without locks a standby worker never knows whether a trainer's publishes beside it
        if not try_lock(mine) or (self._standby and not _knows_locks(mine)):
            os.close(mine)
            return False
        self._lock = mine
        if self._want is not None:
            os.close(self._want)
            self._want = None
        return True

    def wanted(self) -> bool:
        """Whether the turn is to be given up: asked by a standby worker that has it."""
        return self._standby and self._lock is not None and self._others_want()

    def check(self) -> None:
        """Raise `PublisherLockWantedError` if the turn is to be given up."""
        if self.wanted():
            msg = "the worker of a training process wants to publish from this directory"
            raise PublisherLockWantedError(msg)

    def give_up(self) -> None:
        """Let another worker have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _others_want(self) -> bool:
        want = self._opened("worker.want")
        try:
            return not _locked(want, fcntl.LOCK_EX)
        finally:
            os.close(want)

    def _opened(self, name: str) -> int:
        return open_own(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)


def stand_by(root: Path, store_url: str, prefix: str) -> int:
    """Say that this process sends to that place what others leave in `root`, as long as it lives.

    Returns the descriptor that says so. On a full disk it may say nothing: then a training waits
    for the store itself. Called in a standby worker.
    """
    path = root / DOT_DIR / _STANDBY
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)
    if try_lock(descriptor):
        try:
            os.pwrite(descriptor, _place(store_url, prefix), 0)
        except OSError as error:
            if not is_full(error):
                raise
    return descriptor


def stands_by(root: Path, store_url: str, prefix: str) -> bool:
    """Whether a standby worker sends to that place what lies in `root`.

    False where the file system has no locks. Called in a training process, at its end.
    """
    try:
        descriptor = open_own(root / DOT_DIR / _STANDBY, os.O_RDWR)
    except OSError:
        return False
    try:
        wanted = _place(store_url, prefix)
        return os.pread(descriptor, len(wanted), 0) == wanted and not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _place(store_url: str, prefix: str) -> bytes:
    """A digest: the URL may hold a secret."""
    return xxhash.xxh3_128_hexdigest(f"{store_url}\n{prefix}".encode()).encode("ascii")


def _locked(descriptor: int, operation: int) -> bool:
    try:
        lock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _knows_locks(descriptor: int) -> bool:
    """Whether the file system has locks at all: `try_lock` says yes where it has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
