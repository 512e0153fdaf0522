"""What is one rank's own in a sharded checkpoint: the files below `ranks/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import MOST_RANKS, rank_file
from bt_lightning.restore.decode_tree import Decoder
from bt_lightning.restore.read_documents import load_file, read_tree
from bt_lightning.restore.read_tensors import read_tensors, read_whole_file
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.shard_files import OWN
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_LABEL: Final = "state"


@dataclass(frozen=True, slots=True)
class _Read:
    """The files of one rank, read and not decoded."""

    path: str
    document: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


def rank_states(
    reader: CheckpointReader,
    *,
    size: int | None = None,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    live_objects: LiveObjects | None = None,
) -> list[Any]:
    """What each rank saved as its own, by rank; None of those that saved nothing of the kind.

    Without a `size` they are as many as the checkpoint has ranks, none if it is not sharded.
    Tensors are on the host. Raises as `rank_state`, which reads that of one rank alone.
    """
    shards = reader.manifest.origin.get("shards")
    said = shards.get("world_size", 0) if isinstance(shards, dict) else 0
    size = said if size is None and isinstance(said, int) else size or 0
    ranks = range(min(size, MOST_RANKS))
    found = in_parallel(partial(_read, reader), ranks, reader.connections)
    classes = tuple(allowed)
    return [_decoded(reader, each, weights_only, classes, live_objects) for each in found]


def rank_state(
    reader: CheckpointReader,
    rank: int,
    *,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    live_objects: LiveObjects | None = None,
) -> Any:
    """What this rank saved as its own; None if it saved nothing of the kind.

    Raises:
        CheckpointCorruptError: it is damaged.
        UnsafeLoadError: it has values that only `weights_only=False` loads.
        StoreError: the store failed.
    """
    return _decoded(reader, _read(reader, rank), weights_only, tuple(allowed), live_objects)


def _read(reader: CheckpointReader, rank: int) -> _Read | None:
    path = rank_file(rank)
    if reader.manifest.entry(path) is None:
        return None
    tensors = reader.manifest.entry(_beside(path, "safetensors"))
    found = read_tensors(reader, {_LABEL: tensors} if tensors else {})
    return _Read(path, read_tree(reader, path), {_LABEL: {}, **found})


def _decoded(
    reader: CheckpointReader,
    found: _Read | None,
    weights_only: bool | None,  # noqa: FBT001 - as callers have it
    allowed: tuple[object, ...],
    live_objects: LiveObjects | None,
) -> Any:
    if found is None:
        return None
    trusted = weights_only is False
    pickled = reader.manifest.entry(_beside(found.path, "pt"))
    unpickled: dict[str, object] | None = {} if trusted else None
    if trusted and pickled is not None:
        data = read_whole_file(reader, pickled)  # the verified bytes themselves are unpickled
        unpickled = load_file(BytesIO(data), weights_only=False)
    decoder = Decoder(
        found.tensors,
        Leftovers(found.document, unpickled, live_objects),
        ClassTable(allowed, live_objects.names if live_objects else None, trusted=trusted),
    )
    deep = found.document.get("deep", ())
    tree = decoder.decode(found.document["tree"], f"{reader.name}/{found.path}", deep)
    if not isinstance(tree, dict):
        msg = f"the checkpoint {reader.name} is damaged: {found.path} holds no dictionary"
        raise CheckpointCorruptError(msg)
    return tree.get(OWN)


def _beside(path: str, suffix: str) -> str:
    return f"{path.removesuffix('.json')}.{suffix}"
