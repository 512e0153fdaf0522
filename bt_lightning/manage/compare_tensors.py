"""Comparison of the tensors of two checkpoints, in a directory or in a store."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.checkpoint_formats.tensor_file_checks import TORCH_SUFFIXES
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.difference_norms import can_measure, difference_norms
from bt_lightning.manage.tensor_bytes import item_bytes, whole_bytes
from bt_lightning.manage.training_state_files import is_training_state
from bt_lightning.manage.verified_blocks import VerifiedBlocks
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.whole_tensors import by_place, read_shards, read_state, whole_tensors
from bt_lightning.tensor_files.tensor_headers import Difference, Tensor, compare
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.tensor_bytes import StoredTensor
    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.read_plan import SavedBox
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


Side = tuple["JobCheckpoints", "CheckpointItem"]
"""A checkpoint, and where its job's are."""


def compare_items(
    before: JobCheckpoints, old: CheckpointItem, after: JobCheckpoints, new: CheckpointItem
) -> list[Difference]:
    """The tensors that were added, removed, reshaped or changed, by name.

    If there are several files, the name includes the file's path. Tensors in shards are compared
    whole, in bounded memory: of a sharded checkpoint and one of whole tensors, the weights and the
    optimizer states. Digests in the manifests show most equal tensors; only the others are read. Of
    what another program wrote with `torch.save`, whole files are compared: one that differs is a
    difference with the file's name.

    Raises:
        CheckpointCorruptError: a file is not what was saved.
        CheckpointNotFoundError: one of the two was deleted meanwhile.
        StoreError: a store refused.
    """
    return _compare((before, old), (after, new), lambda _: None, with_norms=False)


def compare_with_norms(
    before: Side, after: Side, on_bytes: Callable[[int], None] = lambda _: None
) -> list[Difference]:
    """As `compare_items`, with the norms of changed tensors, and the largest difference first.

    Changed tensors are read once more. What has no norms is last. `on_bytes` is called with the
    bytes of each tensor's pieces that were measured, and with 0 before each comparison.
    """
    return _compare(before, after, on_bytes, with_norms=True)


def _compare(
    one_side: Side, other_side: Side, on_bytes: Callable[[int], None], *, with_norms: bool
) -> list[Difference]:
    (before, old), (after, new) = one_side, other_side
    old = with_digests(before, old, on_bytes)
    new = with_digests(after, new, on_bytes)
    with ExitStack() as stack:
        old_reader = stack.enter_context(open_reader(before, old))
        new_reader = stack.enter_context(open_reader(after, new))
        olds, news = _tensors(old_reader, old, new), _tensors(new_reader, new, old)
        if old.manifest.format != new.manifest.format:
            olds, news = _without_second_names(olds, news), _without_second_names(news, olds)
        old_blocks = VerifiedBlocks(old_reader, old.manifest.files)
        new_blocks = VerifiedBlocks(new_reader, new.manifest.files)
        stored = {id(one.tensor): one for found in (olds, news) for one in found.values()}
        old_entries, new_entries = _entries(old.manifest), _entries(new.manifest)

        def equal(one: Tensor, other: Tensor) -> bool:
            first, second = stored[id(one)], stored[id(other)]
            if _same_digests(old_entries, first, new_entries, second):
                return True
            on_bytes(0)
            return same_bytes(whole_bytes(old_blocks, first), whole_bytes(new_blocks, second))

        def measured(one: Difference) -> Difference:
            tensor, other = one.before, one.after
            if one.kind != "changed" or tensor is None or other is None:
                return one
            if not can_measure(tensor.dtype):
                return one
            olds = whole_bytes(old_blocks, stored[id(tensor)])
            news = whole_bytes(new_blocks, stored[id(other)])
            return replace(one, norms=difference_norms(tensor.dtype, olds, news, on_bytes))

        found = compare(
            {name: one.tensor for name, one in olds.items()},
            {name: one.tensor for name, one in news.items()},
            equal,
        )
        if with_norms:
            found = sorted(map(measured, found), key=_largest_first)
    return found + _changed_files(old, new)


def _largest_first(one: Difference) -> tuple[bool, float]:
    return (True, 0.0) if one.norms is None else (False, -one.norms.sortable)


def _without_second_names(
    own: Mapping[str, StoredTensor], other: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Without further names of tensors that both have: files of others have tied weights once."""
    both = {id(one) for name, one in own.items() if name in other}
    return {name: one for name, one in own.items() if name in other or id(one) not in both}


def same_bytes(one: Iterator[memoryview], other: Iterator[memoryview]) -> bool:
    """Whether two sequences of parts are the same bytes; reads no further than they are."""
    left = right = memoryview(b"")
    while True:
        left = left or next(one, left)
        right = right or next(other, right)
        size = min(len(left), len(right))
        if not size:
            return len(left) == len(right)
        if left[:size] != right[:size]:
            return False
        left, right = left[size:], right[size:]


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


def _entries(manifest: Manifest) -> dict[str, FileEntry]:
    return {entry.path: entry for entry in manifest.files}


def _same_digests(
    old: Mapping[str, FileEntry],
    one: StoredTensor,
    new: Mapping[str, FileEntry],
    other: StoredTensor,
) -> bool:
    """Whether the digests of files, by their paths, show that two tensors have the same bytes."""
    return len(one.boxes) == len(other.boxes) and all(
        first.box == second.box
        and first.offset == second.offset
        and old[first.file].block_bytes == new[second.file].block_bytes
        and _digests(old, first, one) == _digests(new, second, other)
        for first, second in zip(one.boxes, other.boxes, strict=True)
    )


def _digests(
    entries: Mapping[str, FileEntry], saved: SavedBox, stored: StoredTensor
) -> tuple[str, ...]:
    size = stored.tensor.size
    if len(stored.boxes) > 1:
        size = saved.box.items * item_bytes(stored.tensor)
    entry = entries[saved.file]
    first, last = saved.offset // entry.block_bytes, -(-(saved.offset + size) // entry.block_bytes)
    return tuple(entry.blocks[first:last])


def _tensors(
    reader: CheckpointReader, item: CheckpointItem, other: CheckpointItem
) -> dict[str, StoredTensor]:
    """The tensors to compare with those of `other`, by names that both have."""
    manifest = item.manifest
    if manifest.is_sharded == other.manifest.is_sharded:
        return _by_file(reader, item)
    if manifest.format is None and other.manifest.format is None:
        return by_place(read_state(reader, item))
    if manifest.format is None:
        front = f"{WEIGHTS_KEY}.{manifest.weights_prefix}"
        state = read_state(reader, item)
        own = {name: one for name, one in by_place(state).items() if name.startswith(front)}
        return {name.removeprefix(front): one for name, one in own.items()}
    return {
        one.tensor.name: one
        for entry in manifest.files
        if entry.path.endswith(".safetensors") and not is_training_state(entry.path)
        for one in whole_tensors(reader, item, entry)
    }


def _by_file(reader: CheckpointReader, item: CheckpointItem) -> dict[str, StoredTensor]:
    shards = read_shards(reader, item) if item.manifest.is_sharded else None
    files = set() if shards is None else {*shards.index.files.values()}
    entries = [
        entry
        for entry in item.manifest.files
        if entry.path.endswith(".safetensors") and entry.path not in files
    ]
    alone = len(entries) == 1 and shards is None
    found = {} if shards is None else dict(shards.tensors)
    for entry in entries:
        for one in whole_tensors(reader, item, entry):
            found[one.tensor.name if alone else f"{entry.path}: {one.tensor.name}"] = one
    return found
