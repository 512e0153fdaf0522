"""Which files of a sharded checkpoint one rank needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.glob_patterns import matches
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.whole_tensors import read_index
from bt_lightning.path_layout import rank_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints


def entries_of_rank(
    source: JobCheckpoints, item: CheckpointItem, rank: int, entries: Sequence[FileEntry]
) -> list[FileEntry]:
    """Those of `entries` that a rank of the mesh that saved needs: not others' shards and states.

    They are its shard, what is its own, the shards of ranks that wrote boxes for it as well, and
    the files that the checkpoint has once.

    Raises:
        InvalidSettingError: the checkpoint is not sharded, or has no such rank.
        CheckpointNotFoundError: it needs none of them.
        CheckpointCorruptError: its index is damaged.
        StoreError: the store refused.
    """
    manifest = item.manifest
    if not manifest.is_sharded:
        msg = f"{item.name} is not sharded: every rank needs all of it, so leave out --rank"
        raise InvalidSettingError(msg)
    with open_reader(source, item) as reader:
        index = read_index(reader, item)
    size = index.structure.world_size
    if not 0 <= rank < size:
        msg = f"{item.name} was saved by {size} ranks, expected one of 0 to {size - 1}, not {rank}"
        raise InvalidSettingError(msg)
    wanted = {
        file
        for name in index.structure.tensors
        for (file, _), ranks in zip(
            index.boxes(name), index.structure.holders(name).values(), strict=True
        )
        if rank in ranks
    }
    if rank in index.files:
        wanted.add(index.files[rank])
    shards = {*index.files.values()}
    own = f"{rank_file(rank).removesuffix('.json')}.*"
    found = [
        entry
        for entry in entries
        if entry.path in wanted
        or (entry.path not in shards and not matches("ranks/**", entry.path))
        or matches(own, entry.path)
    ]
    if not found:
        msg = f"rank {rank} of {item.name} needs no file that these patterns name"
        raise CheckpointNotFoundError(msg)
    return found
