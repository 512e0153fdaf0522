"""Lightning's entry point for callbacks: adds `BTLightning` to a Trainer without script changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback


def callbacks() -> list[Callback]:
    """Called by Lightning for every new Trainer; returns none unless `BT_LIGHTNING=1`."""
    if os.environ.get("BT_LIGHTNING") != "1":
        return []
    from bt_lightning.lightning_plugin.auto_callback import AutoBTLightning

    return [AutoBTLightning()]
