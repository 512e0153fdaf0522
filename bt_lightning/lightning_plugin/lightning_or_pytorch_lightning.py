"""Chooses between the packages `lightning` and `pytorch_lightning`.

The two have separate classes, and a Trainer accepts only plugins of its own package. A script that
has imported only `pytorch_lightning` gets classes of that package. `BTCheckpointIO` is accepted by
both (it registers as a virtual subclass), and so is any callback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
    from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
    from lightning.pytorch.utilities.parsing import (
        lightning_getattr,
        lightning_hasattr,
        lightning_setattr,
    )
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from lightning_fabric.plugins import CheckpointIO, TorchCheckpointIO
    from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
    from pytorch_lightning.utilities.parsing import (
        lightning_getattr,
        lightning_hasattr,
        lightning_setattr,
    )
else:
    from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
    from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
    from lightning.pytorch.utilities.parsing import (
        lightning_getattr,
        lightning_hasattr,
        lightning_setattr,
    )

_FABRICS = ("lightning.fabric", "lightning_fabric")
_PYTORCHES = ("lightning.pytorch", "pytorch_lightning")


def accept_in_both(kind: type[CheckpointIO]) -> None:
    """Make `isinstance(x, CheckpointIO)` true for `kind` in both packages, if imported."""
    for name in _FABRICS:
        module = sys.modules.get(f"{name}.plugins.io.checkpoint_io")
        base = getattr(module, "CheckpointIO", None)
        if base is not None and not issubclass(kind, base):
            base.register(kind)


def model_checkpoint_classes() -> tuple[type[ModelCheckpoint], ...]:
    """The `ModelCheckpoint` classes of the imported packages."""
    modules = [sys.modules.get(f"{name}.callbacks.model_checkpoint") for name in _PYTORCHES]
    return tuple(module.ModelCheckpoint for module in modules if module is not None)


def attribute_dicts() -> tuple[type, ...]:
    """The dict classes for hyperparameters (`AttributeDict`) of the imported packages."""
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
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "model_checkpoint_classes",
]
