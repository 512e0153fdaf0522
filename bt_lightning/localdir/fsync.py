"""Write files and directory entries so that they survive a power cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.digest import Hasher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry

_WRITE_BYTES = 16 * 1024 * 1024
_SMALL_BYTES = 64 * 1024
_GATHER_BYTES = 1024 * 1024


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Yield a descriptor of the directory `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the entries of the directory `path` durable."""
    with open_directory(path) as descriptor:
        os.fsync(descriptor)


def sync_folders(root: Path, paths: Iterable[str]) -> None:
    """Make the entries of all folders durable in which the files `paths` below `root` lie."""
    for folder in {parent for path in paths for parent in PurePosixPath(path).parents}:
        sync_directory(root / folder)


def write_file(
    file: Path, path: str, pieces: Iterable[memoryview | bytes], block_bytes: int = BLOCK_BYTES
) -> FileEntry:
    """Write `pieces` to the new `file`, durably; return its manifest entry, named `path`."""
    hasher = Hasher(block_bytes)
    with file.open("xb", buffering=0) as stream:
        for piece in _gathered(pieces):
            view = memoryview(piece)
            hasher.update(view)
            write_all(stream.fileno(), view)
        os.fsync(stream.fileno())
    return hasher.entry(path)


def _gathered(pieces: Iterable[memoryview | bytes]) -> Iterator[memoryview | bytes]:
    """The same bytes with small pieces joined: each write and each hash has a fixed cost."""
    small = bytearray()
    for piece in pieces:
        if len(piece) < _SMALL_BYTES:
            small += piece
            if len(small) < _GATHER_BYTES:
                continue
            yield bytes(small)
            small.clear()
            continue
        if small:
            yield bytes(small)
            small.clear()
        yield piece
    if small:
        yield bytes(small)


def make_directories(path: Path) -> None:
    """Create `path` and its parents, durably."""
    missing = [path, *path.parents]
    missing = missing[: next(i for i, folder in enumerate(missing) if folder.is_dir())]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of `data`: write(2) may write less than it is given."""
    while data:
        data = data[os.write(descriptor, data[:_WRITE_BYTES]) :]


def write_out(stream: BinaryIO, data: bytes) -> None:
    """Write `data` and make it durable."""
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())
