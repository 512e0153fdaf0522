"""Tells cheaply whether a module still has the same modules, parameters and buffers below it.

A walk that makes names takes ten microseconds a module; comparing objects with those that were
there takes one.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, compress
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_OWNED = itemgetter("_modules", "_parameters", "_buffers")
_DICTS = {dict, OrderedDict}
_RULES = itemgetter("_state_dict_hooks", "_state_dict_pre_hooks", "_non_persistent_buffers_set")


class ModuleTree:
    """The modules below one, and what they held when this was made; used on one thread.

    It keeps all of that alive.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self.root = root
        self.named = dict(root.named_modules())
        """Name -> module, each module once, as `named_modules` has them."""
        self.modules = list(self.named.values())
        self._kinds = list(map(type, self.modules))
        self._sizes, self._keys, self._items = self._content() or ([-1], [], [])

    def is_same(self, root: torch.nn.Module) -> bool:
        """Whether `root` is that module, with the same objects under the same names below it.

        Modules, parameters, buffers, what is not persistent, and hooks of `state_dict`.
        """
        if root is not self.root or list(map(type, self.modules)) != self._kinds:
            return False
        content = self._content()
        if content is None:
            return False
        sizes, keys, items = content
        return sizes == self._sizes and keys == self._keys and all(map(is_, items, self._items))

    def _content(self) -> tuple[list[int], list[Any], list[Any]] | None:
        """The sizes of all containers of the modules, their keys, and the objects in them.

        None if a module has others than Python's, as those of TorchScript.
        """
        try:
            attributes = list(map(vars, self.modules))
            owned = list(chain.from_iterable(map(_OWNED, attributes)))
            rules = list(chain.from_iterable(map(_RULES, attributes)))
        except KeyError:
            return None
        if not _DICTS.issuperset(map(type, owned)):
            return None
        sizes, numbers = list(map(len, owned)), list(map(len, rules))
        filled = list(compress(owned, sizes))
        keys = list(chain.from_iterable([*filled, *compress(rules, numbers)]))
        return sizes + numbers, keys, list(chain.from_iterable(map(dict.values, filled)))
