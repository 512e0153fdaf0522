"""Folders that jobs of this machine share as their cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT_CACHE: Final = "user_artifacts"
"""Folder of `$BT_RW_CACHE_DIR` that is `$BT_PROJECT_CACHE_DIR`."""


def jobs_cache(environ: Mapping[str, str]) -> Path:
    """The folder for jobs in the user's cache, where `$BT_RW_CACHE_DIR` names no other."""
    home = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "bt_lightning" / "jobs"
