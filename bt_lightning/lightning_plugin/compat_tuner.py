"""Private names of Lightning for callbacks that search for a learning rate or a batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat import forget_loader
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import (
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_SEARCHES = {"BatchSizeFinder": "scale_batch_size", "LearningRateFinder": "lr_find"}
"""Classes, and their method that searches: by training from a checkpoint of their own, which they
restore at the end."""
_RATES = ("lr", "learning_rate")


def searches(trainer: Trainer) -> list[tuple[Any, str]]:
    """The callbacks that search, and the name of their method for it."""
    return [
        (callback, _SEARCHES[kind.__name__])
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for kind in type(callback).__mro__
        if kind.__name__ in _SEARCHES
    ]


def searched_attribute(trainer: Trainer, callback: Any) -> str | None:
    """The attribute of the module or the datamodule that `callback` sets to what it finds."""
    if hasattr(callback, "_batch_arg_name"):
        names: tuple[str, ...] = (callback._batch_arg_name,)
    else:
        names = (callback._attr_name,) if callback._attr_name else _RATES
        names = names if callback._update_attr else ()
    module: Any = trainer.lightning_module
    return next((name for name in names if lightning_hasattr(module, name)), None)


def searched_value(trainer: Trainer, name: str) -> object:
    """The value of such an attribute."""
    module: Any = trainer.lightning_module
    return lightning_getattr(module, name)


def set_searched_value(trainer: Trainer, callback: Any, name: str, value: object) -> None:
    """Set what `callback` would have set; dataloaders that were made before are made anew."""
    module: Any = trainer.lightning_module
    lightning_setattr(module, name, value)
    if hasattr(callback, "optimal_batch_size"):
        callback.optimal_batch_size = value
        forget_loader(trainer.fit_loop)
        trainer.fit_loop.epoch_loop.val_loop._combined_loader = None
