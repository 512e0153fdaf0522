"""The lock that says whether a worker still commits: a new run waits for it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.durable import try_lock

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 0.02


def wait_for_commits(root: Path, limit_s: float) -> bool:
    """Wait until no earlier run's worker commits under `root`: it may hold its newest checkpoint.

    False if one still does at the limit, or its training process still lives.

    Called in the training process before it looks for what to resume from.
    """
    until = time.monotonic() + limit_s
    try:
        descriptor = os.open(commit_lock(root), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        while not (free := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(_PATIENCE_S)
        return free
    finally:
        os.close(descriptor)


def commit_lock(root: Path) -> Path:
    """The file whose lock says that a worker commits under `root`, or may be told to."""
    return root / DOT_DIR / "commit.lock"
