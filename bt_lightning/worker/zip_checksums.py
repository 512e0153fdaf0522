"""Fills in the CRCs of zip files that lie in an arena.

The training process leaves them out: it would have to read every byte. One thread computes them
while the commit thread writes the files before.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bt_lightning.zip_layout import fill_checksums

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

    from typing_extensions import Self

    from bt_lightning.worker_messages import FileImage


def installed_crc32() -> Callable[[memoryview, int], int]:
    """The fastest that is installed: 12 GB/s with isal, 4 GB/s without."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.crc32
    crc32: Callable[[memoryview, int], int] = isal_zlib.crc32
    return crc32


class ZipChecksums:
    """The zip files of one image; a context manager, at whose end nothing writes to the arena."""

    def __init__(self, arena: memoryview) -> None:
        self._arena = arena
        self._executor = ThreadPoolExecutor(1, "bt_lightning crc")
        self._begun: dict[str, Future[None]] = {}

    def begin(self, image: FileImage) -> None:
        """Begin with the file of `image`, if it is a zip file."""
        if image.zipped and image.path not in self._begun:
            self._begun[image.path] = self._executor.submit(self._fill, image)

    def finish(self, image: FileImage) -> None:
        """Return when the file of `image` is complete.

        Raises:
            CheckpointCorruptError: it is no zip file.
        """
        self.begin(image)
        if image.zipped:
            self._begun[image.path].result()

    def _fill(self, image: FileImage) -> None:
        whole = self._arena[image.offset : image.offset + image.size]

        def write(offset: int, content: bytes) -> None:
            whole[offset : offset + len(content)] = content

        fill_checksums(whole, write, installed_crc32())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what has begun; drop the rest."""
        self._executor.shutdown(cancel_futures=True)
