"""Which files of a sharded checkpoint one rank needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import InvalidSettingError
from bt_lightning.glob_patterns import matches
from bt_lightning.manage.whole_tensors import read_index
from bt_lightning.path_layout import rank_file

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry


def entries_of_rank(source: JobCheckpoints, item: CheckpointItem, rank: int) -> list[FileEntry]:
    """The files that a rank of the mesh that saved needs: all but others' shards and own states.

    They are its shard, what is its own, the shards of ranks that wrote boxes for it as well, and
    the files that the checkpoint has once.

    Raises:
        InvalidSettingError: the checkpoint is not sharded, or has no such rank.
        CheckpointCorruptError: its index is damaged.
        StoreError: the store refused.
    """
    manifest = item.manifest
    if not manifest.is_sharded:
        msg = f"{item.name} is not sharded: every rank needs all of it, so leave out --rank"
        raise InvalidSettingError(msg)
    index = read_index(source, item)
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
    return [
        entry
        for entry in manifest.files
        if entry.path in wanted
        or (entry.path not in shards and not matches("ranks/**", entry.path))
        or matches(own, entry.path)
    ]
