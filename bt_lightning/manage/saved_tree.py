"""The typed tree of a checkpoint, read without torch: where its tensors are, and plain values."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.verified_reads import read_file
from bt_lightning.path_layout import TREE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

KIND: Final = "$"
STATE_DICT: Final = "state_dict"
OPTIMIZERS: Final = "optimizer_states"
GROUPS: Final = "param_groups"
NOT_PLAIN: Final = object()
"""What `plain_value` returns of a value that needs a class."""
_PAIRS: Final = frozenset({"dict", "ordereddict", "counter", "defaultdict"})
_PAIR: Final = 2
_LISTS: Final = frozenset({"tuple", "deque"})

Path = tuple[str | int, ...]
"""Keys and positions in lists that lead to a value of the state."""


def typed_tree(source: JobCheckpoints, item: CheckpointItem) -> Any:
    """The tree of a checkpoint of our own layout, as `docs/format.md` describes it.

    Raises:
        CheckpointCorruptError: it is missing, damaged, or no tree.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    entry = item.manifest.entry(TREE)
    if entry is None:
        msg = f"the checkpoint {item.name} has no {TREE}, so it is not one that bt_lightning wrote"
        raise CheckpointCorruptError(msg)
    try:
        document = json.loads(read_file(source, item, entry))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointCorruptError):
            raise
        msg = f"the checkpoint {item.name} is damaged: {TREE} is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if not isinstance(document, dict) or "tree" not in document:
        msg = f"the checkpoint {item.name} is damaged: {TREE} holds no tree"
        raise CheckpointCorruptError(msg)
    return document["tree"]


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
    if kind == "float" and content in {"nan", "inf", "-inf"}:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if kind == "tuple" and isinstance(content, list):
        values = _all_plain([plain_value(item) for item in content])
        return values if values is NOT_PLAIN else tuple(values)
    return NOT_PLAIN


def _all_plain(values: list[Any]) -> Any:
    return NOT_PLAIN if any(value is NOT_PLAIN for value in values) else values
