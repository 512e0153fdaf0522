"""Locks that the kernel drops with their process, however it dies. Source: flock(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import threading
from typing import TYPE_CHECKING

from bt_lightning.localdir.files import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NAMING = threading.Lock()


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock that dies with this process; False if another process has it.

    A file system without locks counts as free: one writer to a directory is the rule there.
    """
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, operation: int) -> None:
    """Call flock(2); a file system without locks counts as free."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextlib.contextmanager
def naming(root: Path) -> Iterator[None]:
    """Be the only one, of all threads and processes, who gives or takes names under `root`."""
    with _NAMING, opened(root) as gate:
        lock(gate, fcntl.LOCK_EX)  # where a file system has no locks, one process is the rule
        yield
