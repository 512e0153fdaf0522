"""Lets `BTLightning` be set up before other callbacks, and before loggers begin their runs.

Lightning makes the run of each logger, and with it a new version or id, before any callback is set
up. Which run it goes on with is known when the start point is.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.logger_runs import resumable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer

_OURS = "BTLightning"


def patch_setup_order() -> None:
    """Patch Lightning's call of the setup hooks, for fits with a `BTLightning`; idempotent.

    Source: `lightning.pytorch.trainer.call._call_setup_hook`.
    """
    for name in ("lightning.pytorch", "pytorch_lightning"):
        module = sys.modules.get(f"{name}.trainer.call")
        original = getattr(module, "_call_setup_hook", None)
        if original is not None and not hasattr(original, "patched_by_bt_lightning"):
            vars(module)["_call_setup_hook"] = _patched(original)


def _patched(original: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
    @functools.wraps(original)
    def call_setup_hook(trainer: Trainer) -> None:
        before: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        ours = [each for each in before if each.state_key == _OURS]
        if not ours or getattr(trainer.state.fn, "value", None) != "fit":
            original(trainer)
            return
        others = [each for each in before if each.state_key != _OURS]
        trainer.callbacks = [*ours, *others]  # type: ignore[attr-defined]
        try:
            with _waiting_loggers(trainer):
                original(trainer)
        finally:
            left: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            kept = [each for each in before if any(each is one for one in left)]
            added = [each for each in left if not any(each is one for one in before)]
            trainer.callbacks = [*kept, *added]  # type: ignore[attr-defined]

    vars(call_setup_hook)["patched_by_bt_lightning"] = True
    return call_setup_hook


@contextlib.contextmanager
def _waiting_loggers(trainer: Trainer) -> Iterator[None]:
    """Hide the loggers that can be resumed until the barrier behind which callbacks are set up."""
    loggers, strategy = list(trainer.loggers), vars(trainer.strategy)
    own = strategy.get("barrier")

    def show() -> None:
        if strategy.get("barrier") is barrier:  # nobody has taken it over since
            if own is None:
                del strategy["barrier"]
            else:
                strategy["barrier"] = own
        trainer.loggers = loggers

    def barrier(*args: Any, **kwargs: Any) -> None:
        show()
        trainer.strategy.barrier(*args, **kwargs)

    strategy["barrier"] = barrier
    trainer.loggers = [each for each in loggers if not resumable(each)]
    try:
        yield
    finally:
        show()
    each: Any
    for each in loggers:  # of a callback that removed itself
        if resumable(each):
            _ = each.experiment
