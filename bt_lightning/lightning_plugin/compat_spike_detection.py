"""Lets Lightning restore its `SpikeDetection`, which fails by a name that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def let_spike_detection_load(trainer: Trainer) -> None:
    """Give each `SpikeDetection` the attribute that its `load_state_dict` reads.

    It calls its running mean `running` there, and `running_mean` elsewhere (Lightning 2.6.6), so
    that every resume would end with an AttributeError.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        named = any(kind.__name__ == "SpikeDetection" for kind in type(callback).__mro__)
        if named and "running_mean" in vars(callback) and not hasattr(callback, "running"):
            callback.running = callback.running_mean
