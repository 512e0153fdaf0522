"""The arena: shared host memory that snapshots are copied into and that the worker writes from.

An arena is a memfd. It needs one descriptor for any number of tensors, is limited by the memory of
the container instead of the 64 MB that containers give to /dev/shm, and is freed when the last
process that maps it ends, also by SIGKILL. Source: memfd_create(2), madvise(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

import torch

from bt_lightning.localdir.held_images import MEMORY_NAME
from bt_lightning.localdir.libc import libc

_STEP = 8 * 1024 * 1024
_MADV_DONTFORK = 10
_MADV_POPULATE_WRITE = 23


class Arena:
    """A shared mapping of `size` bytes, created in the training process and mapped by the worker.

    Raises:
        OSError: the kernel does not provide the memory.
    """

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.descriptor = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, size)
            self._mapping = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.memory = torch.frombuffer(self._mapping, dtype=torch.uint8)
        """The whole arena as uint8, shape `[size]`."""
        self._bases: dict[torch.dtype, torch.Tensor] = {}
        self.address = self.memory.data_ptr()
        self.abandoned = False
        """Set when the arena will not be used: `touch` and pinning stop early."""
        self._advise(0, size, _MADV_DONTFORK)  # dataloader workers must not inherit it

    @property
    def closed(self) -> bool:
        """Whether `close` released the memory."""
        return self.descriptor < 0

    def touch(self, start: int, size: int) -> None:
        """Populate the pages of a range, so that later copies cause no page faults.

        Keeps the content and releases the GIL. Works in steps, since the kernel delays other page
        faults of the process during each call.
        """
        for place in range(start, min(start + size, self.size), _STEP):
            if self.abandoned:
                return
            length = min(_STEP, self.size - place)
            if not self._advise(place, length, _MADV_POPULATE_WRITE):  # before Linux 5.14
                os.posix_fallocate(self.descriptor, place, length)

    def view(self, offset: int, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape and dtype of `like` at `offset`, contiguous."""
        item = like.element_size()
        if offset % item:
            msg = f"offset {offset} is no multiple of the {item} bytes of {like.dtype}"
            raise ValueError(msg)
        base = self._bases.get(like.dtype)
        if base is None:
            base = self._bases[like.dtype] = self.memory[: self.size - self.size % item].view(
                like.dtype
            )
        shape = like.shape
        strides, count = [1] * len(shape), 1
        for axis in range(len(shape) - 1, -1, -1):
            strides[axis] = count
            count *= shape[axis]
        return base.as_strided(shape, strides, offset // item)

    def write(self, offset: int, data: bytes) -> None:
        """Put small data at `offset`."""
        self._mapping[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        """Copy small data from `offset`."""
        return self._mapping[offset : offset + size]

    def close(self) -> None:
        """Release the memory once no tensor views it; the worker's mapping is its own."""
        if self.closed:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        del self.memory
        self._bases.clear()
        with contextlib.suppress(BufferError):  # the last view releases it
            self._mapping.close()

    def _advise(self, start: int, size: int, advice: int) -> bool:
        address = ctypes.c_void_p(self.address + start)
        return bool(libc().madvise(address, ctypes.c_size_t(size), advice) == 0)
