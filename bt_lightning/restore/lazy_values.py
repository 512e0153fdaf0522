"""Values of a checkpoint in which tensors stay unread: plain containers, and nothing else.

Whoever fills a state walks through dictionaries, lists and tuples, and puts memory of its own in
place of each tensor. An object of another kind is made with the tensors that it holds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.snapshot.encode_tree import KIND

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = frozenset({"dict", "ordereddict", "tuple", "tensor"})
"""Kinds of nodes in which, or as which, tensors stay unread."""


def is_object(node: object) -> bool:
    """Whether a node of the tree is made with its tensors: neither a container nor a tensor."""
    return isinstance(node, dict) and KIND in node and node[KIND] not in _PLAIN


def names_inside_objects(tree: object) -> set[tuple[str, str]]:
    """(label, name) of the tensors that objects of a tree are made with."""
    found: set[tuple[str, str]] = set()
    rest: list[tuple[object, bool]] = [(tree, False)]
    while rest:
        node, inside = rest.pop()
        if isinstance(node, list):
            rest += [(item, inside) for item in node]
        elif isinstance(node, dict):
            inside = inside or is_object(node)
            if inside and node.get(KIND) == "tensor":
                found.add((str(node.get("file")), str(node.get("name"))))
            rest += [(item, inside) for item in node.values()]
    return found


def with_leaves(value: Any, leaf: Callable[[str, Any], Any]) -> Any:
    """A container with `leaf` of the key and the value of each entry; another value as it is."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind(leaf(str(number), each) for number, each in enumerate(value))
    if kind is dict or kind is OrderedDict:
        made = kind((key, leaf(str(key), each)) for key, each in value.items())
        if kind is OrderedDict:
            vars(made).update(vars(value))
        return made
    return value
