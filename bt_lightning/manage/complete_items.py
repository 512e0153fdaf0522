"""Items with the digest of every file, for commands that compare bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints


def with_digests(
    source: JobCheckpoints, item: CheckpointItem, on_bytes: Callable[[int], None] = lambda _: None
) -> CheckpointItem:
    """The item as it is if it is committed; else its files are read, and digests made of them.

    `on_bytes` is called with the size of each file that was read.

    Raises:
        CheckpointNotFoundError: a file changed since the item was found.
        OSError: a file cannot be read.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.directory_part
    if item.committed or not isinstance(source, DirectoryCheckpoints):
        return item
    return source.with_digests(item, on_bytes)
