"""Verification of checkpoints against their manifests, several at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.file_contents import has_tensors, is_not_from_torch, tensors_of
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.whole_tensors import check_references, read_state, world_size
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_THREADS = 4
QUICK, BYTES, DEEP = "quick", "bytes", "deep"
"""Depths: manifests and sizes; every byte too, and whether shards make all tensors, each item once;
the headers of all tensor files as well."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying one checkpoint."""

    name: str
    whole: bool
    says: str
    """What is wrong, or its step and size."""


def verify_items(
    pairs: Sequence[tuple[JobCheckpoints, CheckpointItem]],
    depth: str,
    on_bytes: Callable[[int], None],
) -> Iterator[Verdict]:
    """Yield a verdict for each, in their order. Writes nothing, and runs no code from them.

    Raises:
        StoreError: a store refused, which says nothing about a checkpoint.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda pair: _verdict(pair[0], pair[1], depth, on_bytes), pairs)


def unreadable_folders(source: JobCheckpoints) -> list[str]:
    """Those of `source.refused` about folders that could not be read, or are no checkpoint yet.

    They may hold no checkpoint at all, as `lost+found`.
    """
    if isinstance(source, JoinedCheckpoints):
        source = source.directory_part
    return source.unread if isinstance(source, DirectoryCheckpoints) else []


def _verdict(
    source: JobCheckpoints, item: CheckpointItem, depth: str, on_bytes: Callable[[int], None]
) -> Verdict:
    try:
        if depth != QUICK:
            item = with_digests(source, item)
        manifest = item.manifest
        with open_reader(source, item) as reader:
            for entry in manifest.files:
                reader.check(entry)
                if depth != QUICK and item.committed:
                    _read(reader, entry, on_bytes)
            if depth != QUICK:
                _check_contents(reader, item, depth)
    except (CheckpointCorruptError, CheckpointNotFoundError) as error:
        return Verdict(item.where, whole=False, says=str(error))
    says = f"step {manifest.step}, {manifest.size:,} bytes"
    if manifest.is_sharded:
        says += f" in shards of {world_size(manifest)} ranks"
    if not item.committed:
        says += f", {manifest.format}: whole by its layout, without digests to compare with"
    return Verdict(item.where, whole=True, says=says)


def _check_contents(reader: CheckpointReader, item: CheckpointItem, depth: str) -> None:
    """Raise if shards are not each tensor, each item once; `DEEP`: if a header is damaged."""
    shards: set[str] = set()
    if item.manifest.is_sharded:
        state = read_state(reader, item)
        check_references(reader, item, state)
        assert state.shards is not None, "it is sharded"
        shards = {*state.shards.index.files.values()}
    for entry in item.manifest.files if depth == DEEP else ():
        if entry.path in shards:
            continue
        if has_tensors(entry.path) and not is_not_from_torch(reader, entry):
            tensors_of(reader, item, entry)


def _read(reader: CheckpointReader, entry: FileEntry, on_bytes: Callable[[int], None]) -> None:
    piece = memoryview(bytearray(min(reader.piece_bytes, entry.size)))
    for offset in range(0, entry.size, max(1, reader.piece_bytes)):
        count = min(len(piece), entry.size - offset)
        read_verified(reader, entry, offset, [piece[:count]])
        on_bytes(count)
