"""A file of which ranges can be read, as a seekable binary file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RangeFile(io.RawIOBase):
    """Reads by `read`, which is given a position and a number of bytes inside the file.

    Args:
        size: of the file, in bytes.
        read: returns bytes of it; fewer only if the file has become shorter.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size, self._read, self._position = size, read, 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            msg = f"a negative position, {base + offset}"
            raise ValueError(msg)
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer up to the end of the file."""
        count = max(0, min(len(buffer), self._size - self._position))
        data = self._read(self._position, count) if count else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
