"""A file as memory whose errors are raised: reading a plain mapping of it could end the process.

What was read in may be lost again before it is looked at: the file is cut short by somebody else,
or memory is short and the disk refuses a second time. Then a look still ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys

from bt_lightning.localdir.libc import libc

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14: reads all pages in, and answers instead of sending SIGBUS."""


class MappedFile:
    """A whole file; any thread may read. Its memory is the page cache's own."""

    def __init__(self, descriptor: int, size: int) -> None:
        """`descriptor` stays the caller's; `size` is that of the file, in bytes.

        Raises `OSError` if this system or file system cannot map it so.
        """
        if sys.platform != "linux" or not size:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        # private, so that its address can be asked for; nobody writes to it
        try:
            self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE)
        except ValueError as error:  # what Python says of a file that is shorter
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        self._view = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._advise = libc().madvise  # mmap's own keeps the GIL
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        try:
            self.read(0, min(size, mmap.PAGESIZE))
        except OSError:
            self.close()
            raise

    def prefetch(self, offset: int, size: int) -> None:
        """Begin to read the range in, in large pieces; `read` waits for them."""
        self._advise(self._address + offset, size, mmap.MADV_WILLNEED)

    def read(self, offset: int, size: int) -> memoryview:
        """The range, read in; `offset` is a multiple of the page size.

        Raises `OSError` if the disk refuses it, or the file has become shorter.
        """
        if self._advise(self._address + offset, size, _POPULATE_READ):
            code = ctypes.get_errno()
            code = errno.EIO if code == errno.EFAULT else code
            raise OSError(code, os.strerror(code))
        return self._view[offset : offset + size]

    def release(self, offset: int, size: int) -> None:
        """A range is not looked at any more: the page cache alone has it."""
        if self._map.closed:
            return  # its addresses may be of other memory now, which this would empty
        self._advise(self._address + offset, size, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file; every view of it must be gone, or it stays until they are."""
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            return  # the last view takes it along
