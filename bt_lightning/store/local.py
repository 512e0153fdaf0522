"""A folder as a store: `file:///mnt/nas`, or a plain path. Every write is durable and whole."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    StoreTransientError,
)
from bt_lightning.layout import part_name
from bt_lightning.localdir.durable import write_new
from bt_lightning.localdir.files import (
    make_directories,
    raise_unless_gone,
    sync_directory,
    write_all,
    write_out,
)
from bt_lightning.store.parallel import fill
from bt_lightning.store.port import ObjectInfo, translated
from bt_lightning.store.sources import pieces, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from bt_lightning.store.port import Arrived, Reuse, Source


_TRIES = 16


class LocalStore:
    """A `Store` over a local or mounted folder."""

    distant = False
    """It may be the same disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The folder as a URL."""
        return f"file://{self._root}"  # unquoted, as fsspec takes it

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Write a sibling, fsync, rename; a file that is reused whole gets another name."""

        def write(part: Path) -> None:
            if not (
                reuse and whole(source, reuse.ranges) and _linked(self._root / reuse.key, part)
            ):
                _write(source, part)
            part.replace(self._root / key)
            sync_directory(part.parent)

        self._make(key, write)

    def put(self, key: str, data: bytes) -> None:
        """Write a sibling, fsync, rename."""

        def write(part: Path) -> None:
            with part.open("wb") as stream:
                write_out(stream, data)
            part.replace(self._root / key)
            sync_directory(part.parent)

        self._make(key, write)

    def put_new(self, key: str, data: bytes) -> None:
        """Write without a name, fsync, give it the name if that is free."""

        def write(part: Path) -> None:
            try:
                write_new(self._root / key, part, data)
            except FileExistsError:
                found = self.read(key)
                if found is None and not (self._root / key).is_dir():
                    raise FileNotFoundError(key) from None  # somebody deletes it: once more
                if found != data:
                    msg = f"{self.name}/{key} exists and holds other bytes"
                    raise CheckpointExistsError(msg) from None

        self._make(key, write)

    def read(self, key: str) -> bytes | None:
        """The file's bytes."""
        with translated(f"reading {self.name}/{key}"):
            try:
                return (self._root / key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def size(self, key: str) -> int | None:
        """The file's."""
        with translated(f"reading {self.name}/{key}"):
            try:
                status = (self._root / key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read_into(
        self, key: str, offset: int, *targets: memoryview, arrived: Arrived = int
    ) -> None:
        """Read the file at that place."""
        with translated(f"reading {self.name}/{key}"):
            try:
                data = (self._root / key).open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError):
                msg = f"there is no {self.name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            with data:
                data.seek(offset)
                filled = fill(targets, data.readinto, arrived)
            if filled != sum(map(len, targets)):
                msg = f"{self.name}/{key} ends at {offset + filled} bytes"
                raise StoreTransientError(msg)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every regular file under the folder `prefix`."""
        with translated(f"listing {self.name}/{prefix}"):
            for place, _, files in os.walk(self._root / prefix, onerror=raise_unless_gone):
                folder = os.path.relpath(place, self._root)
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(f"{place}/{file}")  # noqa: PTH116 - tens of thousands
                        key = file if folder == "." else f"{folder}/{file}"
                        yield ObjectInfo(key, status.st_size, _version(status))

    def delete(self, keys: Collection[str]) -> None:
        """Delete the files, and the folders that they leave empty."""
        with translated(f"deleting from {self.name}"):
            for key in keys:
                path = self._root / key
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self._root or self._root not in folder.parents:
                        break
                    try:
                        folder.rmdir()
                    except OSError:
                        break  # not empty, or gone already

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Nothing: a write that was cut off left a sibling, which goes with its folder."""

    def sign(self, key: str, expires_s: int) -> str:  # noqa: ARG002 - a file has no such end
        """The file's own URL."""
        return (self._root / key).resolve().as_uri()

    def _make(self, key: str, write: Callable[[Path], None]) -> None:
        """Call `write` with the sibling that becomes `key`: a fixed name, so a retry reuses it.

        Somebody else's `delete` may take the folder away while it is empty: then both come again.
        """
        path = self._root / key
        with translated(f"writing {self.name}/{key}"):
            for last in (False,) * _TRIES + (True,):
                try:
                    make_directories(path.parent)
                    write(path.with_name(part_name(path.name)))
                except CheckpointError:
                    raise
                except (FileNotFoundError, FileExistsError):  # the second: gone when looked at
                    if last:
                        raise
                else:
                    return


def _version(status: os.stat_result) -> str:
    """Every write here makes a new file: the inode or the time differs, and mostly both."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _write(source: Source, part: Path) -> None:
    try:
        with part.open("wb", buffering=0) as target:
            for piece in pieces(source):
                write_all(target.fileno(), piece)
            os.fsync(target.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _linked(there: Path, part: Path) -> bool:
    """Give a committed file, which never changes, a second name; False if that cannot be."""
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(there)
    except OSError:
        return False  # it is gone, or this file system has no links
    return True
