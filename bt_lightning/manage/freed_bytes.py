"""The bytes that a deletion of checkpoints would free, on the disk and in the store."""

from __future__ import annotations

import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints


@dataclass(frozen=True, slots=True)
class FreedBytes:
    """What a deletion of checkpoints would free, in bytes."""

    on_disk: int
    in_store: int
    shared: int
    """Of files on the disk that other checkpoints share, and which stay."""


def freed_bytes(source: JobCheckpoints, items: Sequence[CheckpointItem]) -> FreedBytes:
    """What goes if exactly these checkpoints are deleted.

    A file that other checkpoints share by hard links frees nothing.
    """
    if isinstance(source, DirectoryCheckpoints):
        own, shared = _on_disk(item.where for item in items)
        return FreedBytes(own, 0, shared)
    stored, local = list(items), list[str]()
    if isinstance(source, JoinedCheckpoints):
        stored = [item for item in items if not source.only_on_disk(item)]
        digests = {item.manifest.digest for item in items}
        listed = source.directory_part.items()
        local = [item.where for item in listed if item.manifest.digest in digests]
    own, shared = _on_disk(local)
    return FreedBytes(own, sum(item.manifest.size for item in stored), shared)


def _on_disk(places: Iterable[str]) -> tuple[int, int]:
    """Bytes of files whose every link is below `places`, and of the others."""
    links: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], os.stat_result] = {}
    for place in places:
        path = Path(place)
        for file in [path] if path.is_file() else path.rglob("*"):
            try:
                status = file.lstat()
            except OSError:
                continue  # deleted meanwhile
            if not stat.S_ISDIR(status.st_mode):
                links[status.st_dev, status.st_ino] += 1
                known[status.st_dev, status.st_ino] = status
    own = sum(one.st_size for key, one in known.items() if links[key] >= one.st_nlink)
    return own, sum(one.st_size for one in known.values()) - own
