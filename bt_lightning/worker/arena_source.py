"""A source of upload bytes that reads a file image straight from an arena."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.digest import READ_BYTES, Hasher
from bt_lightning.store.transfer.file_source import PIECE_BYTES, BufferedSource
from bt_lightning.worker.zip_checksums import ZipChecksums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.worker_messages import CommitImage


class ImageSource(BufferedSource):
    """The bytes of one file, in memory that does not change while the source is used."""

    part_bytes = PIECE_BYTES

    def __init__(self, path: str, image: memoryview, block_bytes: int = BLOCK_BYTES) -> None:
        """Hash `image`, the bytes of the file at `path`."""
        hasher = Hasher(block_bytes)
        for start in range(0, len(image), READ_BYTES):
            hasher.update(image[start : start + READ_BYTES])
        self.entry: FileEntry = hasher.entry(path)
        self.size, self.digest = self.entry.size, self.entry.xxh3_128
        self._image = image

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes from `offset`; no copy."""
        yield self._image[offset : offset + size]


def sources_in_arena(job: CommitImage, arena: memoryview) -> dict[str, ImageSource]:
    """The files of an image by their paths; CRCs of zip files are filled in."""
    with ZipChecksums(arena) as checksums:
        for image in job.files:
            checksums.finish(image)
    memory = arena.toreadonly()
    size = BLOCK_BYTES if job.part is None else job.part.block_bytes
    return {
        image.path: ImageSource(image.path, memory[image.offset : image.offset + image.size], size)
        for image in job.files
    }
