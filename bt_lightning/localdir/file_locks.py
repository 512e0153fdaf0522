"""Locks that the kernel drops with their process, however it dies. Source: flock(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NAMING = threading.Lock()
_PATIENCE_S = 60.0
"""Longest wait for others who give a name, which takes them a rename."""
_LOOK_S = 0.002


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
    """Be the only one, of all threads and processes, who gives or takes names under `root`.

    The gate is our folder there, not `root` itself, which may be a temporary that its owner holds.

    Raises:
        TimeoutError: somebody else gave or took names for a minute: a process that is stopped.
    """
    with _NAMING, _gate(root / DOT_DIR):
        yield


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[None]:
    gate = _taken(folder)
    try:
        yield
    finally:
        os.close(gate)


def _taken(folder: Path) -> int:
    """A descriptor of `folder`, which exists and is locked; waits for that, but not for ever."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        gate = _try_to_take(folder)
        if gate is not None:
            return gate
        if time.monotonic() > until:
            msg = f"another process gives or takes names in {folder.parent}"
            raise TimeoutError(errno.ETIMEDOUT, f"{msg}, for {_PATIENCE_S:g} s", str(folder))
        time.sleep(_LOOK_S)


def _try_to_take(folder: Path) -> int | None:
    gate, mine = None, False
    try:
        gate = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # where a file system has no locks, one process is the rule
        mine = try_lock(gate) and os.path.samestat(os.fstat(gate), folder.stat())
    except FileNotFoundError:  # tidied away in between
        if not folder.parent.exists():
            raise
    finally:
        if gate is not None and not mine:
            os.close(gate)
    return gate if mine else None
