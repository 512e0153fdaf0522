"""A memory-mapped file whose read errors are raised: with a plain mapping they send SIGBUS.

One case still ends the process: a page that was read is lost again before it is used, because
another program truncates the file, or memory is short and the disk fails at the second read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys

from bt_lightning.localdir.libc import libc

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14: reads all pages, and returns an error instead of SIGBUS."""


class MappedFile:
    """A mapping of a whole file, for any thread; its memory is that of the page cache."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Map the file; the caller still owns `descriptor`. `size` is the file's size in bytes.

        Raises `OSError` if the system or the file system cannot map it safely.
        """
        if sys.platform != "linux" or not size:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        # private, since ctypes gives the address of writable memory only; nobody writes to it
        try:
            self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE)
        except ValueError as error:  # Python's error for a file that is shorter than `size`
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        self._view = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._advise = libc().madvise  # `mmap.madvise` would keep the GIL
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        try:
            self.read(0, min(size, mmap.PAGESIZE))
        except OSError:
            self.close()
            raise

    def prefetch(self, offset: int, size: int) -> None:
        """Start to read the range into the page cache; `read` waits for it."""
        self._advise(self._address + offset, size, mmap.MADV_WILLNEED)

    def read(self, offset: int, size: int) -> memoryview:
        """The bytes of the range, in memory; `offset` is a multiple of the page size.

        Raises `OSError` if the disk fails, or if the file has become shorter.
        """
        if self._advise(self._address + offset, size, _POPULATE_READ):
            code = ctypes.get_errno()
            code = errno.EIO if code == errno.EFAULT else code
            raise OSError(code, os.strerror(code))
        return self._view[offset : offset + size]

    def release(self, offset: int, size: int) -> None:
        """Unmap the pages of a range that is no longer used; they stay in the page cache."""
        if self._map.closed:
            return  # the addresses may belong to other memory, which this would clear
        self._advise(self._address + offset, size, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file; while views of it exist it stays mapped."""
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            return  # unmapped with the last view
