"""Facts for a manifest: counters of a checkpoint dictionary, versions of what made it."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS = ("global_step", "step", "iteration", "iter_num", "step_count", "steps", "iter")
"""What Lightning, and loops that their users write with Fabric, call the steps that were made."""
EPOCHS = ("epoch", "current_epoch")


def first_count(checkpoint: Mapping[str, Any], *names: str) -> int:
    """The first of these entries that is a whole number of at least 0; else 0."""
    for name in names:
        value = checkpoint.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return 0


@cache  # reading package metadata takes 10 ms
def versions() -> dict[str, str]:
    """Of Python, of this package, and of the frameworks that are loaded."""
    found = {"python": platform.python_version()}
    for package, module in (
        ("bt-lightning", "bt_lightning"),
        ("torch", "torch"),
        ("lightning", "lightning"),
    ):
        if module in sys.modules:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found
