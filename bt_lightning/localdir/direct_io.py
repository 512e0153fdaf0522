"""Write an image from memory to a file with `O_DIRECT`, where the file system supports it.

A direct write makes no second copy: it leaves memory bandwidth and cores to training, and the page
cache to the dataset. Source: open(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.fsync import write_all
from bt_lightning.localdir.libc import libc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.digest import Hasher

BLOCK: Final = 4096
"""Bytes: images are aligned to this in memory, and padded to a multiple of it."""
_CHUNK = 16 * 1024 * 1024
_DIRECT_BYTES = 1024 * 1024
_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_image(
    file: Path,
    image: memoryview,
    size: int,
    hasher: Hasher,
    describe: Callable[[Hasher], FileEntry],
) -> FileEntry:
    """Write the first `size` bytes of `image` to the new `file`, durably; return its entry.

    `image` is page-aligned and `size` bytes long, rounded up to `BLOCK`. Another thread hashes it
    at the same time, and calls `describe` for the entry, maybe long before the bytes are durable.
    Called in the worker.

    Raises:
        OSError: the disk refused; if there is no room, before the first byte is written.
    """
    with ThreadPoolExecutor(1, "bt_lightning hash") as other:
        hashed = [
            other.submit(hasher.update, image[start : min(start + _CHUNK, size)])
            for start in range(0, size, _CHUNK)
        ]
        entry = other.submit(describe, hasher)
        if size < _DIRECT_BYTES or not _write(file, image, size, os.O_DIRECT):
            _write(file, image, size, 0)
    for part in hashed:
        part.result()
    return entry.result()


def _write(file: Path, image: memoryview, size: int, flag: int) -> bool:
    """Write with the open(2) flag `flag`; False if the file system refuses it."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag, 0o666)
    except OSError as error:
        if flag and error.errno in _REFUSED:
            return False
        raise
    try:
        end = -(-size // BLOCK) * BLOCK if flag else size
        reserve(descriptor, size)
        write_all(descriptor, image[:end])
        if end > size:
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    except OSError as error:
        if flag and error.errno in _REFUSED:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def reserve(descriptor: int, size: int) -> None:
    """Allocate blocks with fallocate(2), if the file system supports it.

    `os.posix_fallocate` would emulate it by writing into every block.
    """
    if not size or not hasattr(libc(), "fallocate"):
        return
    length = ctypes.c_int64(size)
    if libc().fallocate(descriptor, 0, ctypes.c_int64(0), length):
        code = ctypes.get_errno()
        if code in _FULL:
            raise OSError(code, os.strerror(code))
