"""Removal requests on disk: `remove_checkpoint` asks, the worker carries it out when it may.

One small file per request, named by the digest of the manifest that is to go, so that a request
outlives every process and cannot hit a later generation of the same id.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DirectoryUnusableError
from bt_lightning.localdir.directory_walk import entries
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER: Final = "remove"
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_MOST: Final = 100_000


def request_local_removal(root: Path, digest: str) -> None:
    """Ask that the checkpoint with this manifest digest goes, in every tier."""
    make_requests(root)
    (root / DOT_DIR / _FOLDER / digest).touch()


def make_requests(root: Path) -> None:
    """Have the folder of requests, before the disk is full: a new directory takes room."""
    (root / DOT_DIR / _FOLDER).mkdir(parents=True, exist_ok=True)


def requested_local_removals(root: Path) -> frozenset[str]:
    """Digests of all that was asked to go and is not gone everywhere.

    Of more than there can be, as many as are taken at a time: the others follow.
    """
    found: set[str] = set()
    with contextlib.suppress(FileNotFoundError, DirectoryUnusableError):
        for entry in entries(str(root / DOT_DIR / _FOLDER)):
            if _DIGEST.fullmatch(entry.name):
                found.add(entry.name)
            if len(found) == _MOST:
                break
    return frozenset(found)


def forget_removal(root: Path, digest: str) -> None:
    """Drop a request that was carried out in every tier."""
    (root / DOT_DIR / _FOLDER / digest).unlink(missing_ok=True)
