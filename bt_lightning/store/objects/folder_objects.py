"""Files of a local folder, each at the inode and times that it has."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, StorePermanentError, StoreTransientError
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.store.objects.pinned_object import MOST_OBJECTS, PinnedObject, changed, too_many

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bt_lightning.store.interface import ReadProgress


class FolderObjects:
    """The files below a folder, or one file. Links to files are read; links to folders refused."""

    connections = 4

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = f"file://{path}"

    def find(self) -> list[PinnedObject]:
        """Every file; a link to a folder is an error, since it would be missed."""
        if self._path.is_file():
            return [_pinned("", self._path.stat())]
        if not self._path.is_dir():
            msg = f"there is no file or folder {self._path}"
            raise CheckpointNotFoundError(msg)
        found = []
        for one in self._files(str(self._path)):
            found.append(one)
            if len(found) > MOST_OBJECTS:
                raise too_many(self.name)
        if not found:
            msg = f"there is nothing in {self._path}"
            raise CheckpointNotFoundError(msg)
        return found

    def checksums(self, found: PinnedObject) -> Mapping[str, str]:
        """None: a disk stores no checksums."""
        return found.checksums

    def read_into(
        self, found: PinnedObject, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read that range; the file must be the same before and after."""
        path = self._path / found.key if found.key else self._path
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            raise changed(str(path)) from None
        try:
            before = _pinned(found.key, os.fstat(descriptor))
            filled = 0
            while filled < len(target):
                count = os.preadv(descriptor, [target[filled:]], offset + filled)
                if not count:
                    break
                filled += count
            after = _pinned(found.key, os.fstat(descriptor))
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise StoreTransientError(msg) from error
        finally:
            os.close(descriptor)
        if filled < len(target) or before != found or after != found:
            raise changed(str(path))
        on_progress(filled)

    def _files(self, folder: str, below: str = "") -> Iterator[PinnedObject]:
        pending = [(folder, below)]
        while pending:
            at, key = pending.pop()
            with os.scandir(at) as entries:
                for entry in entries:
                    name = f"{key}/{entry.name}" if key else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, name))
                        continue
                    try:
                        status = entry.stat()
                    except OSError as error:
                        msg = f"{entry.path} cannot be read: {error.strerror}"
                        raise StorePermanentError(msg) from error
                    if not stat.S_ISREG(status.st_mode):
                        what = "links to a folder" if entry.is_dir() else "is no file"
                        msg = f"{entry.path} {what}, expected files and folders only: move it away"
                        raise StorePermanentError(msg)
                    yield _pinned(name, status)


def _pinned(key: str, status: os.stat_result) -> PinnedObject:
    version = f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
    return PinnedObject(key, status.st_size, version)
