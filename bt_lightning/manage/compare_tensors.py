"""Comparison of the tensors of two checkpoints, in a directory or in a store."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from bt_lightning.manage.file_contents import same_bytes, tensors_of
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.tensor_files.tensor_headers import Difference, compare

if TYPE_CHECKING:
    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry
    from bt_lightning.tensor_files.tensor_headers import Tensor


def compare_items(
    before: JobCheckpoints, old: CheckpointItem, after: JobCheckpoints, new: CheckpointItem
) -> list[Difference]:
    """The tensors that were added, removed, reshaped or changed, by name.

    If there are several files, the name includes the file's path. Digests in the manifests show
    most equal tensors; only the others are read.

    Raises:
        CheckpointCorruptError: a file is not what was saved.
        CheckpointNotFoundError: one of the two was deleted meanwhile.
        StoreError: a store refused.
    """
    olds, news = _tensors(before, old), _tensors(after, new)
    with ExitStack() as stack:
        old_reader = stack.enter_context(open_reader(before, old))
        new_reader = stack.enter_context(open_reader(after, new))

        def equal(one: Tensor, other: Tensor) -> bool:
            entry, other_entry = files_of[id(one)], files_of[id(other)]
            if same_blocks(entry, one, other_entry, other):
                return True
            return same_bytes((old_reader, entry, one), (new_reader, other_entry, other))

        files_of = {id(t): entry for found in (olds, news) for entry, t in found.values()}
        return compare(
            {name: tensor for name, (_, tensor) in olds.items()},
            {name: tensor for name, (_, tensor) in news.items()},
            equal,
        )


def same_blocks(entry: FileEntry, one: Tensor, other_entry: FileEntry, other: Tensor) -> bool:
    """Whether the digests of two manifests alone show that two tensors have the same bytes."""
    if one.offset is None or (one.offset, one.size) != (other.offset, other.size):
        return False
    blocks = slice(one.offset // BLOCK_BYTES, -(-(one.offset + one.size) // BLOCK_BYTES))
    return entry.blocks[blocks] == other_entry.blocks[blocks]


def _tensors(source: JobCheckpoints, item: CheckpointItem) -> dict[str, tuple[FileEntry, Tensor]]:
    entries = [entry for entry in item.manifest.files if entry.path.endswith(".safetensors")]
    return {
        tensor.name if len(entries) == 1 else f"{entry.path}: {tensor.name}": (entry, tensor)
        for entry in entries
        for tensor in tensors_of(source, item, entry).tensors
    }
