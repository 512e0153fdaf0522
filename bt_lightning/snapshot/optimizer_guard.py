"""Makes every optimizer step wait until the snapshot is copied.

A global hook runs before each optimizer step of this process, also of optimizers that the Trainer
does not know. A step with a closure runs forward and backward inside it, so the guard waits at the
end of the closure, before the update begins. That is correct only for optimizers that change
nothing before their closure. The optimizers of torch are known to be so. For any other class, the
guard waits before the step, and observes one closure to see whether the weights changed before it
(SAM, for example, moves them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bt_lightning.snapshot.host_copies import write_counts
from bt_lightning.snapshot.local_shards import is_dtensor, local_part

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLES = 64


class OptimizerGuard:
    """Calls `finish_copy` on the training thread before any optimizer changes a tensor."""

    def __init__(self, finish_copy: Callable[[], None]) -> None:
        self._finish_copy = finish_copy
        self._waits_for_closure: dict[type, bool] = {}
        """Optimizer class -> whether it changes nothing before its closure returns."""
        # traced into a compiled step, the hook would take effect after the update
        hook = torch.compiler.disable(self._before_step)  # type: ignore[no-untyped-call]
        self._handle = register_optimizer_step_pre_hook(hook)

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        kind = type(optimizer)
        if not callable(closure):
            self._finish_copy()
            return None
        waits_for_closure = self._waits_for_closure.get(kind)
        if waits_for_closure is None and kind.__module__.startswith("torch.optim."):
            waits_for_closure = self._waits_for_closure[kind] = True
        if not waits_for_closure:
            self._finish_copy()
        if waits_for_closure is None:
            closure = self._observed(kind, closure, optimizer)
        guarded = self._until_after(closure)  # also covers a save inside the closure
        if "closure" in kwargs:
            return args, {**kwargs, "closure": guarded}
        return (args[0], guarded, *args[2:]), kwargs

    def _until_after(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return closure(*args, **kwargs)
            finally:
                self._finish_copy()

        return guarded

    def _observed(
        self, kind: type, closure: Callable[..., Any], optimizer: torch.optim.Optimizer
    ) -> Callable[..., Any]:
        """The closure, whose first call checks whether the step has changed the weights."""
        before = _sample(optimizer)

        def observed(*args: Any, **kwargs: Any) -> Any:
            if kind not in self._waits_for_closure:
                self._waits_for_closure[kind] = _sample(optimizer) == before
            return closure(*args, **kwargs)

        return observed


def _sample(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Version counters and some values of the weights: writes to `.data` change no counter."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    parts = [local_part(each) if is_dtensor(each) else each for each in weights[:_SAMPLES]]
    values = [part.detach().reshape(-1)[:1].clone().cpu().tolist() for part in parts]
    return [write_counts(weights), values]
