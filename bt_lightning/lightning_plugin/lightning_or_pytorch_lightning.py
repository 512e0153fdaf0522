"""The one place that chooses between `lightning` and `pytorch_lightning`.

The two packages hold separate class trees, and a Trainer accepts plugins of its own tree only. A
script that imported only `pytorch_lightning` gets classes of that tree; `BTCheckpointIO` is
accepted by both (it registers as a virtual subclass), and a plain callback always is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
    from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from lightning_fabric.plugins import CheckpointIO, TorchCheckpointIO
    from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
else:
    from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
    from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

_FABRICS = ("lightning.fabric", "lightning_fabric")
_PYTORCHES = ("lightning.pytorch", "pytorch_lightning")


def accept_in_both(kind: type[CheckpointIO]) -> None:
    """Make `isinstance(x, CheckpointIO)` true for `kind` in every namespace that is loaded."""
    for name in _FABRICS:
        module = sys.modules.get(f"{name}.plugins.io.checkpoint_io")
        base = getattr(module, "CheckpointIO", None)
        if base is not None and not issubclass(kind, base):
            base.register(kind)


def model_checkpoint_classes() -> tuple[type[ModelCheckpoint], ...]:
    """`ModelCheckpoint` of every namespace that is loaded."""
    modules = [sys.modules.get(f"{name}.callbacks.model_checkpoint") for name in _PYTORCHES]
    return tuple(module.ModelCheckpoint for module in modules if module is not None)


def attribute_dicts() -> tuple[type, ...]:
    """Lightning's own dict class, which hyperparameters hold, of every namespace that is loaded."""
    modules = [sys.modules.get(f"{name}.utilities.data") for name in _FABRICS]
    return tuple(module.AttributeDict for module in modules if module is not None)


__all__ = [
    "Callback",
    "Checkpoint",
    "CheckpointIO",
    "ModelCheckpoint",
    "TorchCheckpointIO",
    "accept_in_both",
    "attribute_dicts",
    "model_checkpoint_classes",
]
