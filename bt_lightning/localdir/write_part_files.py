"""Writes a rank's part of a save on the calling thread, where no memory for an arena is left."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bt_lightning.localdir.fsync import sync_folders, write_file
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.path_layout import check_member
from bt_lightning.sharding.save_part import PartRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from bt_lightning.sharding.save_part import SaveHead, SavePart


def write_part_files(
    root: Path,
    part: SavePart,
    files: Mapping[str, Callable[[], Iterable[memoryview | bytes]]],
    head: SaveHead | None,
) -> PartRecord:
    """Write files, given as functions that yield their bytes, and then the record; all durably.

    Called in the training process, on any rank; waits for the disk, and for no other rank. Its
    worker is then told to wait for the others (`AwaitParts`).

    Raises:
        OSError: the disk refused; there is no record then.
    """
    place = GatherDirectory(root, part.rank)
    try:
        folder = place.begin(part)
        entries = []
        for path, pieces in files.items():
            target = folder / check_member(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            entries.append(write_file(target, path, pieces(), part.block_bytes))
        sync_folders(folder, files)
        host = socket.gethostname()
        record = PartRecord(part=part, host=host, files=tuple(entries), head=head)
        place.put(record)
    finally:
        place.end(part.key)
    return record
