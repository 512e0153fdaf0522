"""Lightning's entry point: a Trainer in a job gets the callback without a change of the script."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback


def callbacks() -> list[Callback]:
    """Called by Lightning in the init of every Trainer; nothing without `BT_LIGHTNING=1`."""
    if os.environ.get("BT_LIGHTNING") != "1":
        return []
    from bt_lightning.lightning_plugin.auto_callback import ImpliedBTLightning

    return [ImpliedBTLightning()]
