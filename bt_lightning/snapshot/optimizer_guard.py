"""Keeps optimizers from changing what is still being copied.

One hook before every optimizer step of this process, whoever owns the optimizer. A step that is
given a closure runs forward and backward inside it: such a step is let in, and held back when its
closure is over and the update is about to begin. That is right for optimizers that change nothing
before their closure. Those of torch are known to be so; any other is watched over one step of its
own first (SAM, for one, moves the weights before it calls the closure), and held back at its door
until it has passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bt_lightning.snapshot.host_copies import write_counts

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLES = 64


class OptimizerGuard:
    """Calls `settle` on the training thread before any optimizer changes anything."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._patient: dict[type, bool] = {}
        """Class of optimizer -> whether it changes nothing before its closure is over."""
        # a compiled step would trace through the hook, and run what it does later than it says
        hook = torch.compiler.disable(self._before_step)  # type: ignore[no-untyped-call]
        self._handle = register_optimizer_step_pre_hook(hook)

    def close(self) -> None:
        """Let every optimizer go."""
        self._handle.remove()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        kind = type(optimizer)
        if not callable(closure):
            self._settle()
            return None
        patient = self._patient.get(kind)
        if patient is None and kind.__module__.startswith("torch.optim."):
            patient = self._patient[kind] = True
        if not patient:
            self._settle()
        if patient is None:
            closure = self._observed(kind, closure, optimizer)
        guarded = self._until_after(closure)  # a save inside it is held by no other hook
        if "closure" in kwargs:
            return args, {**kwargs, "closure": guarded}
        return (args[0], guarded, *args[2:]), kwargs

    def _until_after(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return closure(*args, **kwargs)
            finally:
                self._settle()

        return guarded

    def _observed(
        self, kind: type, closure: Callable[..., Any], optimizer: torch.optim.Optimizer
    ) -> Callable[..., Any]:
        """The closure, which looks at its first call whether the step has changed anything."""
        before = _sample(optimizer)

        def observed(*args: Any, **kwargs: Any) -> Any:
            if kind not in self._patient:
                self._patient[kind] = _sample(optimizer) == before
            return closure(*args, **kwargs)

        return observed


def _sample(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What tells of a change of its weights: versions, and some values, for writes to `.data`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    values = [
        weight.detach().reshape(-1)[:1].clone().cpu().tolist() for weight in weights[:_SAMPLES]
    ]
    return [write_counts(weights), values]
