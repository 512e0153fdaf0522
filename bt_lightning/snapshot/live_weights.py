"""The live weights of a module, whose names are kept while its modules and tensors are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.snapshot.local_shards import module_state
from bt_lightning.snapshot.module_kinds import has_stock_state, is_fsdp1, reshard
from bt_lightning.snapshot.module_tree import ModuleTree

if TYPE_CHECKING:
    import torch


class LiveWeights:
    """`module_state` of one module at each save; used on the training thread of one rank."""

    def __init__(self) -> None:
        self._tree: ModuleTree | None = None
        self._state: dict[str, Any] = {}
        self.is_fsdp1 = False
        """Whether FSDP1 shards the module of the last call."""

    def of(self, module: torch.nn.Module) -> dict[str, Any]:
        """As `module_state`, a dict of the caller's own.

        FSDP2 puts other parameters in the place of the sharded ones: where those of the last call
        stand, nothing is left to be resharded.
        """
        tree = self._tree
        if tree is not None and not tree.is_same(module):
            reshard(module)
            tree = tree if tree.is_same(module) else None
        if tree is None:
            self._tree, self._state = None, module_state(module)
            tree = ModuleTree(module)
            if has_stock_state(tree.modules):
                self._tree = tree
            self.is_fsdp1 = is_fsdp1(module)
        return dict(self._state)

    def clear(self) -> None:
        """Release every tensor."""
        self._tree, self._state = None, {}
