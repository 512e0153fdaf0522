"""Comparison of the tensors of two checkpoints, in a directory or in a store."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from bt_lightning.checkpoint_formats.tensor_file_checks import TORCH_SUFFIXES
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.file_contents import same_bytes, tensors_of
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.tensor_files.tensor_headers import Difference, Tensor, compare

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry


def compare_items(
    before: JobCheckpoints, old: CheckpointItem, after: JobCheckpoints, new: CheckpointItem
) -> list[Difference]:
    """The tensors that were added, removed, reshaped or changed, by name.

    If there are several files, the name includes the file's path. Digests in the manifests show
    most equal tensors; only the others are read. Of what another program wrote with `torch.save`,
    whole files are compared: one that differs is a difference with the file's name.

    Raises:
        CheckpointCorruptError: a file is not what was saved.
        CheckpointNotFoundError: one of the two was deleted meanwhile.
        StoreError: a store refused.
    """
    old, new = with_digests(before, old), with_digests(after, new)
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
        found = compare(
            {name: tensor for name, (_, tensor) in olds.items()},
            {name: tensor for name, (_, tensor) in news.items()},
            equal,
        )
    return found + _changed_files(old, new)


def _changed_files(old: CheckpointItem, new: CheckpointItem) -> list[Difference]:
    """The files of `torch.save` that differ, of checkpoints of other programs."""
    if old.manifest.format is None or new.manifest.format is None:
        return []
    entries = [entry for item in (old, new) for entry in item.manifest.files]
    paths = sorted({entry.path for entry in entries if entry.path.endswith(TORCH_SUFFIXES)})
    both = [(path, old.manifest.entry(path), new.manifest.entry(path)) for path in paths]
    pairs = [(path, (_as_tensor(a), _as_tensor(b))) for path, a, b in both if a != b]
    return [
        Difference(path, "added" if a is None else "removed" if b is None else "changed", a, b)
        for path, (a, b) in pairs
    ]


def _as_tensor(entry: FileEntry | None) -> Tensor | None:
    """A file as bytes without a type."""
    return None if entry is None else Tensor(entry.path, "file", (entry.size,), entry.size)


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
