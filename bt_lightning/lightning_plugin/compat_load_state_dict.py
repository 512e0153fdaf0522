"""Lets a `LightningModule` load weights whose base is not in the checkpoint.

`load_from_checkpoint` makes the module and loads it in one function, and `Trainer.test` knows no
hook in between.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from bt_lightning.restore.weights_without_base import WeightsWithoutBase

if TYPE_CHECKING:
    from collections.abc import Callable


def patch_load_state_dict() -> None:
    """Patch the base class of all modules, in every loaded namespace; idempotent."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        kind: Any = getattr(sys.modules.get(f"{name}.core.module"), "LightningModule", None)
        original = getattr(kind, "load_state_dict", None)
        if original is not None and not getattr(original, "patched_by_bt_lightning", False):
            kind.load_state_dict = _completing(original)


def _completing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict(
        self: Any,
        state_dict: Any,
        strict: bool = True,  # noqa: FBT001, FBT002 - torch's signature
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if isinstance(state_dict, WeightsWithoutBase):
            state_dict = state_dict.completed(self, strict=strict)
        return original(self, state_dict, strict, *args, **kwargs)

    vars(load_state_dict)["patched_by_bt_lightning"] = True
    return load_state_dict
