"""Opens a checkpoint of whichever layout: its tree decoded, its large tensors unread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import TREE
from bt_lightning.restore.dcp_folder import DCP, open_dcp
from bt_lightning.restore.decode_tree import Decoder, names_needed_on_host
from bt_lightning.restore.lazy_values import is_object, names_inside_objects
from bt_lightning.restore.opened_state import SavedState
from bt_lightning.restore.optimizer_states import OPTIMIZERS
from bt_lightning.restore.read_documents import read_leftovers, read_tree
from bt_lightning.restore.saved_tensors import open_tensors, read_whole, referenced
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.restore.weights_without_base import load_base_table
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.dtypes import plain_dtype
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.restore.saved_tensors import SavedTensors
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def open_state(
    reader: CheckpointReader,
    *,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    live_objects: LiveObjects | None = None,
    tensors_only: bool = False,
) -> SavedState:
    """Open a committed checkpoint, sharded or full, on any rank; arguments as in `load_checkpoint`.

    With `tensors_only`, `rest` is empty: it may have what only `weights_only=False` loads.

    Raises:
        CheckpointCorruptError: bytes are missing or changed.
        UnsafeLoadError: it has values that only `weights_only=False` loads.
        StoreError: the store failed.
    """
    if reader.manifest.format == DCP:
        return open_dcp(reader, weights_only=weights_only, tensors_only=tensors_only)
    document, tensors = read_tree(reader), open_tensors(reader)
    tree, deep = document["tree"], document.get("deep", ())
    if not isinstance(tree, dict):
        msg = f"the checkpoint {reader.name} is damaged: {TREE} holds no dictionary"
        raise CheckpointCorruptError(msg)
    weights, states = tree.get(WEIGHTS_KEY, {}), tree.get(OPTIMIZERS, [])
    others = {key: node for key, node in tree.items() if key not in {WEIGHTS_KEY, OPTIMIZERS}}
    if tensors_only:
        others = {}
    lazy = [weights, states]
    names = referenced([others, deep]) | names_needed_on_host(lazy) | names_inside_objects(lazy)
    found, read_bytes = read_whole(tensors, names)
    leftovers = Leftovers(
        document, read_leftovers(reader) if weights_only is False else None, live_objects
    )
    classes = ClassTable(
        allowed, live_objects.names if live_objects else None, trusted=weights_only is False
    )
    file = f"{reader.name}/{TREE}"
    rest = Decoder(found, leftovers, classes).decode(others, file, deep)
    decoder = _LazyDecoder(tensors, found, leftovers, classes)
    return SavedState(
        reader.name,
        tensors,
        rest,
        decoder.decode(weights, file, deep),
        decoder.decode(states, file, deep),
        load_base_table(reader),
        read_bytes,
    )


class _LazyDecoder(Decoder):
    """Leaves dense tensors unread, but for those that objects are made with."""

    def __init__(
        self,
        tensors: SavedTensors,
        found: Mapping[str, Mapping[str, torch.Tensor]],
        leftovers: Leftovers,
        classes: ClassTable,
    ) -> None:
        super().__init__(found, leftovers, classes)
        self._saved = tensors
        self._inside = 0

    def decode(self, tree: object, file: str, deep: object = ()) -> Any:
        """As `Decoder.decode`; who refers to a part of `deep` is not known, so they are read."""
        self._inside += 1
        super().decode(None, file, deep)
        self._inside -= 1
        return super().decode(tree, file)

    def _value(self, node: Any) -> Any:
        if not is_object(node):
            return super()._value(node)
        self._inside += 1
        try:
            return super()._value(node)
        finally:
            self._inside -= 1

    def _tensor(self, node: dict[str, Any], *, move: bool = True) -> Any:
        if self._inside:
            return super()._tensor(node, move=move)
        tensor = self._saved.find(str(node["file"]), str(node["name"]))
        if "dtype" not in node:
            return tensor
        dtype = plain_dtype(node["dtype"])
        if dtype is None:
            msg = f"this torch has no dtype {node['dtype']!r}"
            raise ValueError(msg)
        return replace(tensor, packed=dtype)
