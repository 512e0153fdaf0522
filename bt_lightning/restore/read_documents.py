"""The files of a checkpoint beside its tensors: the tree, and what only pickle can hold."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import LEFTOVERS, TREE
from bt_lightning.restore.read_tensors import read_whole_file
from bt_lightning.tree_document import tree_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    MapLocation = torch.device | str | Callable[..., Any] | dict[str, str] | None


def read_tree(reader: CheckpointReader, path: str = TREE) -> dict[str, Any]:
    """The verified document of a typed tree, not decoded.

    Raises:
        CheckpointCorruptError: it is missing, damaged, or no such document.
        StoreError: the store failed.
    """
    entry = reader.manifest.entry(path)
    if entry is None:
        msg = f"the checkpoint {reader.name} is damaged: its manifest names no {path}"
        raise CheckpointCorruptError(msg)
    return tree_document(read_whole_file(reader, entry), reader.name, path)


def parts_of_tree(document: dict[str, Any]) -> list[Any]:
    """All parts of a typed tree that may refer to tensors."""
    return [document["tree"], document.get("deep")]


def read_leftovers(
    reader: CheckpointReader, map_location: MapLocation = None
) -> Mapping[str, object]:
    """The values of `leftovers.pt`, by path; runs the code that it names."""
    entry = reader.manifest.entry(LEFTOVERS)
    if entry is None:
        return {}
    data = read_whole_file(reader, entry)  # the verified bytes themselves are unpickled
    return load_file(BytesIO(data), map_location, weights_only=False)


def load_file(
    path: object, map_location: MapLocation = None, *, weights_only: bool | None = None
) -> dict[str, Any]:
    """Load a stock `.ckpt` with `torch.load`; pickled code runs only with `weights_only=False`."""
    return torch.load(  # type: ignore[no-any-return]
        path,  # type: ignore[arg-type]
        map_location="cpu" if map_location is None else map_location,
        weights_only=weights_only is not False,
    )
