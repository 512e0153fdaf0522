"""Lock files that let one worker at a time publish from a directory; a trainer's goes first.

The worker that publishes holds `worker.lock`. A worker of a training process that waits for it
holds `worker.want`. A standby worker takes `worker.lock` only while nobody holds either, and
releases it when somebody holds `worker.want`. It also holds `worker.standby` as long as it lives,
which says where it sends checkpoints to: a training that ends there need not wait for the store.
All are held by flock(2): the kernel drops them with their process, so there is no clock, and a kill
leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.localdir.disk_space import is_full
from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path


_STANDBY: Final = "worker.standby"


class PublisherLockWantedError(Exception):
    """Raised in a standby worker, between two steps, when a trainer's worker wants the lock."""


class PublisherLock:
    """One worker's hold on the lock. The publisher thread calls it; other threads read `held`."""

    def __init__(self, root: Path, *, standby: bool) -> None:
        self._folder = root / DOT_DIR
        self._standby = standby
        self._lock: int | None = None
        self._want: int | None = None

    @property
    def held(self) -> bool:
        """Whether this worker, and no other, publishes from the directory."""
        return self._lock is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this worker holds it. Never waits."""
        if self._lock is not None:
            return True
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._standby:
            if self._is_wanted():
                return False
        elif self._want is None:
            want = self._open("worker.want")
            if _try_flock(want, fcntl.LOCK_SH):
                self._want = want
            else:
                os.close(want)  # a standby worker just tests it; the next try succeeds
        mine = self._open("worker.lock")
        # without flock a standby worker cannot tell whether a trainer's worker publishes
        if not try_lock(mine) or (self._standby and not _supports_flock(mine)):
            os.close(mine)
            return False
        self._lock = mine
        if self._want is not None:
            os.close(self._want)
            self._want = None
        return True

    def wanted(self) -> bool:
        """Whether this standby worker holds the lock and a trainer's worker waits for it."""
        return self._standby and self._lock is not None and self._is_wanted()

    def check(self) -> None:
        """Raise `PublisherLockWantedError` if a trainer's worker waits for the lock."""
        if self.wanted():
            msg = "the worker of a training process wants to publish from this directory"
            raise PublisherLockWantedError(msg)

    def release(self) -> None:
        """Let another worker take the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_wanted(self) -> bool:
        want = self._open("worker.want")
        try:
            return not _try_flock(want, fcntl.LOCK_EX)
        finally:
            os.close(want)

    def _open(self, name: str) -> int:
        return open_own(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)


def stand_by(root: Path, store_url: str, prefix: str) -> int:
    """Announce, while this process lives, that it publishes what others leave in `root`.

    Returns the open descriptor of `worker.standby`. On a full disk the file stays empty: then a
    training waits for the store itself. Called in a standby worker.
    """
    path = root / DOT_DIR / _STANDBY
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)
    if try_lock(descriptor):
        try:
            os.pwrite(descriptor, _destination(store_url, prefix), 0)
        except OSError as error:
            if not is_full(error):
                raise
    return descriptor


def stands_by(root: Path, store_url: str, prefix: str) -> bool:
    """Whether a standby worker publishes from `root` to that store and prefix.

    False where the file system has no flock. Called in a training process, at its end.
    """
    try:
        descriptor = open_own(root / DOT_DIR / _STANDBY, os.O_RDWR)
    except OSError:
        return False
    try:
        wanted = _destination(store_url, prefix)
        return os.pread(descriptor, len(wanted), 0) == wanted and not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _destination(store_url: str, prefix: str) -> bytes:
    """A digest of store and prefix, since the URL may hold a secret."""
    return xxhash.xxh3_128_hexdigest(f"{store_url}\n{prefix}".encode()).encode("ascii")


def _try_flock(descriptor: int, operation: int) -> bool:
    try:
        lock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _supports_flock(descriptor: int) -> bool:
    """Whether the file system has flock at all: `try_lock` returns True where it has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
