"""Reads facts for a manifest: the counters of a checkpoint dictionary, and package versions."""

from __future__ import annotations

import platform
import socket
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS = ("global_step", "step", "iteration", "iter_num", "step_count", "steps", "iter")
"""Names of the step counter in checkpoints of Lightning and of hand-written loops."""
EPOCHS = ("epoch", "current_epoch")


def first_count(checkpoint: Mapping[str, Any], *names: str) -> int:
    """The first of these entries that is an integer of at least 0; 0 if there is none."""
    for name in names:
        value = checkpoint.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return 0


@cache  # reading package metadata takes 10 ms
def package_versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the imported frameworks."""
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


def process_facts() -> dict[str, Any]:
    """What a manifest says of the process that saved: its packages' versions, and its host."""
    return {"versions": dict(package_versions()), "host": socket.gethostname()}
