"""The typed tree of a checkpoint, read without torch: where its tensors are, and plain values."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.verified_reads import read_open_file
from bt_lightning.path_layout import TREE
from bt_lightning.tree_document import (
    OTHER_WEIGHTS_KEYS,
    WEIGHTS_KEY,
    objects_of,
    tree_document,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

KIND: Final = "$"
OPTIMIZERS: Final = "optimizer_states"
GROUPS: Final = "param_groups"
NOT_PLAIN: Final = object()
"""What `plain_value` returns of a value that needs a class."""
_PAIRS: Final = frozenset({"dict", "ordereddict", "counter", "defaultdict"})
_PAIR: Final = 2
_NOT_FINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LISTS: Final = frozenset({"tuple", "deque"})
_TENSORS: Final = frozenset({"tensor", "sparse_coo", "sparse_compressed"})
_DEEPEST: Final = 350
"""Lists and objects in each other: three for each of the 100 levels that a tree has at most."""

Path = tuple[str | int, ...]
"""Keys and positions in lists that lead to a value of the state."""


def read_document(
    reader: CheckpointReader, item: CheckpointItem, path: str = TREE
) -> dict[str, Any]:
    """The document of a checkpoint of our own layout, whose `tree` the functions below can read.

    Raises:
        CheckpointCorruptError: it is missing, damaged, or no tree.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    entry = item.manifest.entry(path)
    if entry is None:
        msg = f"the checkpoint {item.name} has no {path}, so it is not one that bt_lightning wrote"
        raise CheckpointCorruptError(msg)
    document = tree_document(read_open_file(reader, entry), item.name, path)
    reason = _fault(document)
    if reason:
        msg = f"the checkpoint {item.name} is damaged: {path} {reason}"
        raise CheckpointCorruptError(msg)
    return document


def _fault(document: Mapping[str, Any]) -> str:
    """Why the tree cannot be walked; "" if it can."""
    if _depth(document) > _DEEPEST:
        return "has a value that lies too deep"
    for node in objects_of(document):
        kind = node.get(KIND, "")
        if not isinstance(kind, str):
            return f"has {kind!r:.60} for the kind of a value, expected text"
        try:
            for key, _ in pairs_of(node) if kind else ():
                hash(key)
        except TypeError as error:
            return f"has a key of a dictionary that can be none ({error})"
    return ""


def _depth(document: Mapping[str, Any]) -> int:
    """Lists and objects of the tree that lie in each other."""
    level: list[Any] = [document["tree"], document.get("deep")]
    depth = 0
    while level := [one for one in level if isinstance(one, list | dict)]:
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = list(chain.from_iterable(inner))
        depth += 1
    return depth


def pairs_of(node: Any) -> list[tuple[Any, Any]]:
    """Keys and nodes of what a dictionary holds, in its order; empty for any other value."""
    if not isinstance(node, dict):
        return []
    if KIND not in node:
        return list(node.items())
    found = node.get("v")
    if node[KIND] not in _PAIRS or not isinstance(found, list):
        return []
    pairs = [one for one in found if isinstance(one, list) and len(one) == _PAIR]
    return [(plain_value(key), value) for key, value in pairs]


def at(node: Any, *path: str | int) -> Any:
    """The node at a path; None if there is none."""
    for key in path:
        if isinstance(node, list):
            node = node[key] if isinstance(key, int) and key < len(node) else None
        else:
            node = dict(pairs_of(node)).get(key)
    return node


def weights_entry(tree: Any) -> str:
    """The entry of a state whose tensors are the weights, as a save has chosen it."""
    entries = dict(pairs_of(tree))
    others = () if WEIGHTS_KEY in entries else OTHER_WEIGHTS_KEYS
    return next((name for name in others if _is_flat(entries.get(name))), WEIGHTS_KEY)


def _is_flat(node: Any) -> bool:
    pairs = pairs_of(node)
    return bool(pairs) and all(
        isinstance(value, dict) and value.get(KIND) in _TENSORS for _, value in pairs
    )


def tensors_in(node: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each tensor below a node: its path, and what the tree says of it."""
    if isinstance(node, dict) and node.get(KIND) == "tensor":
        yield path, node
        return
    if isinstance(node, dict) and node.get(KIND) in _LISTS:
        node = node.get("v")
    inner = enumerate(node) if isinstance(node, list) else pairs_of(node)
    for key, value in inner:
        if isinstance(key, str | int):
            yield from tensors_in(value, (*path, key))


def references_in(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`file` and `name` of each tensor in a document, whatever value it is part of."""
    for node in objects_of(document):
        if node.get(KIND) == "tensor":
            yield node
        elif node.get(KIND) == "numpy.ndarray":
            content = node.get("v")
            yield content if isinstance(content, dict) else {}


def plain_value(node: Any) -> Any:
    """None, a boolean, number, text, or a list, tuple or dictionary of such; else `NOT_PLAIN`."""
    if isinstance(node, list):
        return _all_plain([plain_value(item) for item in node])
    if not isinstance(node, dict):
        return node
    kind, content = node.get(KIND), node.get("v")
    if kind is None or kind in {"dict", "ordereddict"}:
        pairs = [(key, plain_value(value)) for key, value in pairs_of(node)]
        values = _all_plain([value for _, value in pairs])
        return values if values is NOT_PLAIN else dict(pairs)
    if kind == "float" and isinstance(content, str) and content in _NOT_FINITE:
        return _NOT_FINITE[content]
    if kind == "tuple" and isinstance(content, list):
        values = _all_plain([plain_value(item) for item in content])
        return values if values is NOT_PLAIN else tuple(values)
    return NOT_PLAIN


def _all_plain(values: list[Any]) -> Any:
    return NOT_PLAIN if any(value is NOT_PLAIN for value in values) else values
