"""Images in an arena as the files of a checkpoint that is sent from there, without a disk."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.localdir.digest import READ_BYTES, Hasher
from bt_lightning.store.transfer.file_source import PIECE_BYTES, Steady

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manifest import FileEntry


class ImageSource(Steady):
    """The bytes of one file, in memory that stays as it is."""

    part_bytes = PIECE_BYTES

    def __init__(self, path: str, image: memoryview) -> None:
        """Hash `image`, which has the size of the file."""
        hasher = Hasher()
        for start in range(0, len(image), READ_BYTES):
            hasher.update(image[start : start + READ_BYTES])
        self.entry: FileEntry = hasher.entry(path)
        self.size, self.digest = self.entry.size, self.entry.xxh3_128
        self._image = image

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """A slice of it."""
        yield self._image[offset : offset + size]
