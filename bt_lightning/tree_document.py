"""The document of a typed tree, `trainer.json` or one of `ranks/`: JSON that is not decoded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


WEIGHTS_KEY: Final = "state_dict"
"""The entry of a Lightning checkpoint whose tensors are the model's weights."""
OTHER_WEIGHTS_KEYS: Final = ("model", "module", "net", "network")
"""Names of that entry in checkpoints that scripts save with Fabric."""


def tree_document(data: bytes | bytearray, checkpoint: str, path: str) -> dict[str, Any]:
    """The document in `data`, the file `path` of a checkpoint; docs/format.md describes it.

    Raises:
        CheckpointCorruptError: it is no such document.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"the checkpoint {checkpoint} is damaged: {path} is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if not isinstance(document, dict) or "tree" not in document:
        msg = f"the checkpoint {checkpoint} is damaged: {path} holds no tree"
        raise CheckpointCorruptError(msg)
    return document


def objects_of(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object of the tree and of its separately encoded parts, however deep it lies."""
    rest: list[Any] = [document["tree"], document.get("deep")]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            yield node
            rest += node.values()
        elif isinstance(node, list):
            rest += node
