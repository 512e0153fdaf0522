"""Whether checkpoints are what was saved, wherever they lie; several are looked at at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manage.file_contents import has_tensors, is_of_others, tensors_of
from bt_lightning.manage.job_checkpoints import DirectoryCheckpoints, JoinedCheckpoints
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_THREADS = 4
QUICK, BYTES, DEEP = "quick", "bytes", "deep"
"""Manifests and sizes; every byte too; the headers of tensor files, and their sense, as well."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at one checkpoint came to."""

    name: str
    whole: bool
    says: str
    """What is wrong, or its step and size."""


def verify_items(
    pairs: Sequence[tuple[JobCheckpoints, CheckpointItem]],
    depth: str,
    on_bytes: Callable[[int], None],
) -> Iterator[Verdict]:
    """A verdict for each, in their order. Nothing is kept, nothing of them is run.

    Raises:
        StoreError: a store refused; that says nothing of a checkpoint.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda pair: _verdict(pair[0], pair[1], depth, on_bytes), pairs)


def unread_of(shelf: JobCheckpoints) -> list[str]:
    """Those of `shelf.refused` that tell of a folder that could not be looked into.

    Whether a checkpoint lies there nobody knows, as of `lost+found`.
    """
    if isinstance(shelf, JoinedCheckpoints):
        shelf = shelf.directory_shelf
    return shelf.unread if isinstance(shelf, DirectoryCheckpoints) else []


def _verdict(
    shelf: JobCheckpoints, item: CheckpointItem, depth: str, on_bytes: Callable[[int], None]
) -> Verdict:
    manifest = item.manifest
    try:
        with open_reader(shelf, item) as place:
            if place.manifest.digest != manifest.digest:
                says = f"{item.name} was replaced while it was read: verify again"
                return Verdict(item.where, whole=False, says=says)
            for entry in manifest.files:
                place.check(entry)
                if depth != QUICK:
                    _read(place, entry, on_bytes)
        if depth == DEEP:
            for entry in manifest.files:
                if has_tensors(entry.path) and not is_of_others(shelf, item, entry):
                    tensors_of(shelf, item, entry)
    except (CheckpointCorruptError, CheckpointNotFoundError) as error:
        return Verdict(item.where, whole=False, says=str(error))
    return Verdict(item.where, whole=True, says=f"step {manifest.step}, {manifest.size:,} bytes")


def _read(place: CheckpointReader, entry: FileEntry, on_bytes: Callable[[int], None]) -> None:
    piece = memoryview(bytearray(min(place.piece_bytes, entry.size)))
    for offset in range(0, entry.size, max(1, place.piece_bytes)):
        count = min(len(piece), entry.size - offset)
        read_verified(place, entry, offset, [piece[:count]])
        on_bytes(count)
