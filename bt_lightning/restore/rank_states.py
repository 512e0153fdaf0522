"""What is one rank's own in a sharded checkpoint: the files below `ranks/`."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import rank_file
from bt_lightning.restore.decode_tree import Decoder
from bt_lightning.restore.read_documents import load_file, read_tree
from bt_lightning.restore.read_tensors import read_tensors, read_whole_file
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.shard_files import OWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_LABEL: Final = "state"


def rank_states(
    reader: CheckpointReader,
    *,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    live_objects: LiveObjects | None = None,
) -> list[Any]:
    """What each rank saved as its own, by rank; None of those that saved nothing of the kind.

    The list is empty if the checkpoint is not sharded. Tensors are on the host. Raises as
    `rank_state`, which reads that of one rank alone.
    """
    shards = reader.manifest.origin.get("shards")
    size = shards.get("world_size", 0) if isinstance(shards, dict) else 0
    return [
        rank_state(
            reader, rank, weights_only=weights_only, allowed=allowed, live_objects=live_objects
        )
        for rank in range(size if isinstance(size, int) else 0)
    ]


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
    path = rank_file(rank)
    if reader.manifest.entry(path) is None:
        return None
    stem, trusted = path.removesuffix(".json"), weights_only is False
    document = read_tree(reader, path)
    tensors = reader.manifest.entry(f"{stem}.safetensors")
    found = read_tensors(reader, {_LABEL: tensors} if tensors else {})
    pickled = reader.manifest.entry(f"{stem}.pt")
    unpickled: dict[str, object] | None = {} if trusted else None
    if trusted and pickled is not None:
        data = read_whole_file(reader, pickled)  # the verified bytes themselves are unpickled
        unpickled = load_file(BytesIO(data), weights_only=False)
    decoder = Decoder(
        {_LABEL: {}, **found},
        Leftovers(document, unpickled, live_objects),
        ClassTable(allowed, live_objects.names if live_objects else None, trusted=trusted),
    )
    tree = decoder.decode(document["tree"], f"{reader.name}/{path}", document.get("deep", ()))
    if not isinstance(tree, dict):
        msg = f"the checkpoint {reader.name} is damaged: {path} holds no dictionary"
        raise CheckpointCorruptError(msg)
    return tree.get(OWN)
