"""A folder of the disk as the table of formats sees it; a file that changed since is gone."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from bt_lightning.checkpoint_formats.folder_view import FolderView
from bt_lightning.checkpoint_formats.sharded_folders import METADATA
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.no_symlinks import READ

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def is_dcp_folder(path: Path) -> bool:
    """Whether `torch.distributed.checkpoint` finished a save in this folder."""
    return (path / METADATA).is_file()


def view_of_folder(
    folder: Path, stamps: Mapping[str, Stamp], *, settled: bool, copied: bool = False
) -> FolderView:
    """A view of the files of `folder`, posix path -> stamp when it was listed.

    Its reads raise `FileNotFoundError` once a file has another stamp. If the files may be `copied`,
    their times say nothing. `settled`: see `FolderView`.
    """

    def read(path: str, start: int, count: int) -> bytes:
        descriptor = os.open(folder / path, READ)
        try:
            data = os.pread(descriptor, count, start)
            while len(data) < count and (
                more := os.pread(descriptor, count - len(data), start + len(data))
            ):
                data += more
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if Stamp.of(status) != stamps[path] or not stat.S_ISREG(status.st_mode):
            msg = f"{folder / path} changed while it was looked at"
            raise FileNotFoundError(msg)
        return data

    return FolderView(
        name=folder.name,
        files={path: stamp.size for path, stamp in stamps.items()},
        read=read,
        times=None if copied else {path: stamp.mtime_ns for path, stamp in stamps.items()},
        settled=settled,
    )


def stamps_below(folder: Path, hidden: tuple[str, ...] = (".metadata",)) -> dict[str, Stamp]:
    """The stamps of all regular files below `folder`, but for names that begin with a dot.

    Raises:
        OSError: a folder cannot be read.
    """
    found: dict[str, Stamp] = {}
    folders = [""]
    while folders:
        inside = folders.pop()
        with os.scandir(folder / inside) as listed:
            for entry in listed:
                path = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith(".") and not entry.name.endswith(hidden):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found[path] = Stamp.of(entry.stat(follow_symlinks=False))
    return found
