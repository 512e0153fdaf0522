"""A folder as a store: `file:///mnt/nas`, or a plain path. Every write is durable and whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointExistsError, CheckpointNotFoundError
from bt_lightning.layout import part_name
from bt_lightning.localdir.durable import write_new
from bt_lightning.localdir.files import (
    make_directories,
    raise_unless_gone,
    sync_directory,
    write_out,
)
from bt_lightning.store.port import ObjectInfo, translated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_COPY_BYTES = 8 * 1024 * 1024


class LocalStore:
    """A `Store` over a local or mounted folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The folder as a URL."""
        return f"file://{self._root}"  # unquoted, as fsspec takes it

    def put_file(self, source: Path, key: str) -> None:
        """Copy through a sibling, fsync, rename."""
        with translated(f"copying {source.name} to {self.name}/{key}"), source.open("rb") as data:
            part = self._part(key)
            with part.open("wb") as target:
                shutil.copyfileobj(data, target, _COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            part.replace(self._root / key)
            sync_directory(part.parent)

    def put(self, key: str, data: bytes) -> None:
        """Write a sibling, fsync, rename."""
        with translated(f"writing {self.name}/{key}"):
            part = self._part(key)
            with part.open("wb") as stream:
                write_out(stream, data)
            part.replace(self._root / key)
            sync_directory(part.parent)

    def put_new(self, key: str, data: bytes) -> None:
        """Write without a name, fsync, give it the name if that is free."""
        with translated(f"writing {self.name}/{key}"):
            try:
                write_new(self._root / key, self._part(key), data)
            except FileExistsError:
                if self.read(key) != data:
                    msg = f"{self.name}/{key} exists and holds other bytes"
                    raise CheckpointExistsError(msg) from None

    def read(self, key: str) -> bytes | None:
        """The file's bytes."""
        with translated(f"reading {self.name}/{key}"):
            try:
                return (self._root / key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def get_file(self, key: str, target: Path) -> None:
        """Copy the file."""
        with translated(f"copying {self.name}/{key}"):
            try:
                data = (self._root / key).open("rb")
            except FileNotFoundError:
                msg = f"there is no {self.name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            with data, target.open("xb") as stream:
                shutil.copyfileobj(data, stream, _COPY_BYTES)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every regular file under the folder `prefix`."""
        with translated(f"listing {self.name}/{prefix}"):
            for place, _, files in os.walk(self._root / prefix, onerror=raise_unless_gone):
                for file in files:
                    path = Path(place, file)
                    with contextlib.suppress(FileNotFoundError):
                        size = path.stat().st_size
                        yield ObjectInfo(path.relative_to(self._root).as_posix(), size)

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

    def _part(self, key: str) -> Path:
        """The sibling that becomes `key`; its name is fixed, so that a retry reuses it."""
        path = self._root / key
        make_directories(path.parent)
        return path.with_name(part_name(path.name))
