"""Writing an image that lies in memory: past the page cache, where the file system lets us.

A direct write takes no second copy, so it leaves the memory bandwidth and the cores to training,
and the page cache to the dataset. Source: open(2), O_DIRECT.
"""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.fsync import write_all
from bt_lightning.localdir.libc import libc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.manifest import FileEntry

BLOCK: Final = 4096
"""Bytes: images begin at a multiple of this in memory, and are readable to the next multiple."""
_CHUNK = 16 * 1024 * 1024
_DIRECT_BYTES = 1024 * 1024
_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_image(
    file: Path,
    path: str,
    image: memoryview,
    size: int,
    described: Callable[[FileEntry], None] = lambda _: None,
) -> FileEntry:
    """Write the first `size` bytes of `image` to the new `file`, durably; describe it as `path`.

    `image` is page-aligned and `size` bytes long, rounded up to `BLOCK`. It is hashed beside the
    writing; `described` is called when that is done, maybe long before the bytes are durable, by
    another thread. Called in the worker.

    Raises:
        OSError: the disk refused; a disk that is too small says so before the first byte.
    """
    hasher = Hasher()
    with ThreadPoolExecutor(1, "bt_lightning hash") as other:
        for start in range(0, size, _CHUNK):
            other.submit(hasher.update, image[start : min(start + _CHUNK, size)])
        entry = other.submit(hasher.entry, path)
        told = other.submit(lambda: described(entry.result()))
        if size < _DIRECT_BYTES or not _write(file, image, size, os.O_DIRECT):
            _write(file, image, size, 0)
        told.result()
    return entry.result()


def _write(file: Path, image: memoryview, size: int, flag: int) -> bool:
    """Write in one way; False if the file system refuses that way."""
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
    """Allocate blocks with fallocate(2); where a file system cannot, do without.

    Not `os.posix_fallocate`: the C library imitates it by writing into every block.
    """
    if not size or not hasattr(libc(), "fallocate"):
        return
    length = ctypes.c_int64(size)
    if libc().fallocate(descriptor, 0, ctypes.c_int64(0), length):
        code = ctypes.get_errno()
        if code in _FULL:
            raise OSError(code, os.strerror(code))
