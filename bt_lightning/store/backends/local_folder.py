"""A local or mounted folder as a store: `file:///mnt/nas`, or a plain path.

Every write is durable, and whole or not there.
"""

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
from bt_lightning.localdir import no_symlinks
from bt_lightning.localdir.fsync import write_all
from bt_lightning.localdir.no_symlinks import made_folder
from bt_lightning.localdir.rename_noreplace import write_new
from bt_lightning.path_layout import part_name
from bt_lightning.store.interface import ObjectInfo, most_bytes, too_large, translated
from bt_lightning.store.transfer.file_source import covers_all, pieces
from bt_lightning.store.transfer.parallel_reads import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from bt_lightning.store.interface import ReadProgress, Reuse, Source

_TRIES = 16


class LocalStore:
    """A `Store` over a local or mounted folder. Links in it are neither followed nor listed."""

    distant = False
    """The folder may lie on the disk of the checkpoint directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The folder as a URL."""
        return f"file://{self._root}"  # unquoted, as fsspec takes it

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Write a temporary sibling, fsync, rename; a file that is reused whole is hard-linked."""

        def write(folder: int, name: str) -> None:
            part = part_name(name)
            again = reuse is not None and covers_all(source, reuse.ranges)
            if reuse is not None and again and self._link(reuse.key, folder, part):
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                _write(pieces(source), folder, name)
            os.fsync(folder)

        self._make(key, write)

    def put(self, key: str, data: bytes) -> None:
        """Write a temporary sibling, fsync, rename."""

        def write(folder: int, name: str) -> None:
            _write([memoryview(data)], folder, name)
            os.fsync(folder)

        self._make(key, write)

    def put_new(self, key: str, data: bytes) -> None:
        """Write a file without a name, fsync, link it to the name if that is free."""

        def write(folder: int, name: str) -> None:
            try:
                write_new(folder, name, data)
            except FileExistsError:
                found = self.read(key)
                if found is None and not _taken(folder, name):
                    raise FileNotFoundError(key) from None  # deleted meanwhile: try again
                if found != data:
                    msg = f"{self.name}/{key} exists and holds other bytes"
                    raise CheckpointExistsError(msg) from None

        self._make(key, write)

    def read(self, key: str) -> bytes | None:
        """The file's bytes."""
        with translated(f"reading {self.name}/{key}"):
            try:
                descriptor = no_symlinks.open_file(self._root, key)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(most_bytes(key) + 1)
        if len(data) > most_bytes(key):
            raise too_large(self.name, key)
        return data

    def size(self, key: str) -> int | None:
        """The file's size in bytes."""
        with translated(f"reading {self.name}/{key}"):
            parent, name = no_symlinks.split(key)
            try:
                with no_symlinks.folder(self._root, parent) as folder:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(status.st_mode):
                raise no_symlinks.link_in_the_way(key)
            return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read the file from `offset` on."""
        with translated(f"reading {self.name}/{key}"):
            try:
                descriptor = no_symlinks.open_file(self._root, key)
            except (FileNotFoundError, NotADirectoryError):
                msg = f"there is no {self.name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            with os.fdopen(descriptor, "rb", buffering=0) as data:
                data.seek(offset)
                filled = fill(targets, data.readinto, on_progress)
            if filled != sum(map(len, targets)):
                msg = f"{self.name}/{key} ends at {offset + filled} bytes"
                raise StoreTransientError(msg)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every regular file under the folder `prefix`."""
        with translated(f"listing {self.name}/{prefix}"):
            for key, status in no_symlinks.walk_no_symlinks(self._root, prefix):
                yield ObjectInfo(key, status.st_size, _version(status))

    def delete(self, keys: Collection[str]) -> None:
        """Delete the files, and the folders that become empty."""
        with translated(f"deleting from {self.name}"):
            for key in keys:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._delete(key)

    def _delete(self, key: str) -> None:
        parent, name = no_symlinks.split(key)
        with (
            no_symlinks.folder(self._root, parent) as folder,
            contextlib.suppress(FileNotFoundError),
        ):
            os.unlink(name, dir_fd=folder)
        while parent:
            parent, name = no_symlinks.split(parent)
            with no_symlinks.folder(self._root, parent) as folder:
                try:
                    os.rmdir(name, dir_fd=folder)
                except OSError:
                    return  # not empty, or gone already

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Do nothing: an interrupted write leaves a temporary sibling, deleted with its folder."""

    def sign(self, key: str, expires_s: int) -> str:  # noqa: ARG002 - a file has no such end
        """The file's own URL."""
        self.size(key)  # raises for a symbolic link, which an open of the URL would follow
        return (self._root.resolve() / key).as_uri()

    def _make(self, key: str, write: Callable[[int, str], None]) -> None:
        """Call `write` with a descriptor of the folder of `key`, and the name in it.

        Another process's `delete` may remove the folder while it is empty: then try again.
        """
        with translated(f"writing {self.name}/{key}"):
            parent, name = no_symlinks.split(key)
            for last in (False,) * _TRIES + (True,):
                try:
                    with made_folder(self._root, parent) as folder:
                        write(folder, name)
                except CheckpointError:
                    raise
                except (FileNotFoundError, FileExistsError):  # the second: gone when read
                    if last:
                        raise
                else:
                    return

    def _link(self, key: str, folder: int, part: str) -> bool:
        """Hard-link a committed file, which never changes; False if that is not possible."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        parent, name = no_symlinks.split(key)
        try:
            with no_symlinks.folder(self._root, parent) as there:
                os.link(name, part, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False  # it is gone, or this file system has no hard links
        return stat.S_ISREG(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode)


def _version(status: os.stat_result) -> str:
    """A version of a file: every write makes a new one, so the inode or a time differs."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _write(data: Iterable[memoryview], folder: int, name: str) -> None:
    """Write a temporary sibling, fsync, rename. Its name is fixed, so that a retry reuses it."""
    part = part_name(name)
    descriptor = no_symlinks.new_file(folder, part)
    try:
        for piece in data:
            write_all(descriptor, piece)
        os.fsync(descriptor)
        no_symlinks.rename(folder, part, name, descriptor)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def _taken(folder: int, name: str) -> bool:
    """Whether something other than a regular file has the name."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode)
