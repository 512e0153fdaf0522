"""The lock files by which workers join a gather; each has the host of its worker."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.file_locks import try_lock
from bt_lightning.localdir.safe_open import open_own

if TYPE_CHECKING:
    from pathlib import Path

_RANK: Final = re.compile(r"rank-([0-9]{5,9})", re.ASCII)
_HOST_BYTES: Final = 256
_LOCK_S: Final = 2.0
_POLL_S: Final = 0.005


def join_gather(home: Path, rank: int) -> int:
    """Lock the file of this rank; return its descriptor, which has the lock.

    Raises:
        TimeoutError: another living process has it.
        OSError: the disk refused.
    """
    descriptor = open_own(home / f"rank-{rank:05}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock_soon(descriptor, home)
        os.pwrite(descriptor, socket.gethostname().encode()[:_HOST_BYTES], 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock_soon(descriptor: int, home: Path) -> None:
    """Lock a file; another process looks at it for a moment, or is about to end."""
    until = time.monotonic() + _LOCK_S
    while not try_lock(descriptor):
        if time.monotonic() > until:
            msg = f"another process of this rank is at work in {home}"
            raise TimeoutError(errno.ETIMEDOUT, msg)
        time.sleep(_POLL_S)


def host_of_lock(path: Path) -> str:
    """The host of the worker that joined by this file.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = open_own(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, _HOST_BYTES, 0).decode(errors="replace")
    finally:
        os.close(descriptor)


def is_left(path: Path) -> bool:
    """Whether the process that locked this file is dead; False if there is no such file.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        descriptor = open_own(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


def rank_of_lock(name: str) -> int | None:
    """The rank whose lock file has this name; None for other names."""
    found = _RANK.fullmatch(name)
    return None if found is None else int(found[1])
