"""The optimizers of this process, by their steps, for adapters that are not told of them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from torch.optim import Optimizer


class SteppedOptimizers:
    """Notes each optimizer whose step begins; called, it returns those that are alive."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Optimizer]] = {}
        # traced into a compiled step, the hook would break its graph
        note = torch.compiler.disable(self._note)  # type: ignore[no-untyped-call]
        self._handle = register_optimizer_step_pre_hook(note)

    def __call__(self) -> list[Optimizer]:
        """Those that have begun a step, and are alive."""
        return [found for seen in list(self._seen.values()) if (found := seen()) is not None]

    def close(self) -> None:
        """Note no more; idempotent."""
        self._handle.remove()

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        seen = self._seen.get(id(optimizer))
        if seen is None or seen() is not optimizer:  # an id is used again
            self._seen[id(optimizer)] = weakref.ref(optimizer)
