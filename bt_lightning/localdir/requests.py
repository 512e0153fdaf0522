"""Removal requests on disk: `remove_checkpoint` asks, the worker carries it out when it may.

One small file per request, named by the digest of the manifest that is to go, so that a request
outlives every process and cannot hit a later generation of the same id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = "remove"


def request_removal(root: Path, digest: str) -> None:
    """Ask that the checkpoint with this manifest digest goes, in every tier."""
    make_requests(root)
    (root / DOT_DIR / _FOLDER / digest).touch()


def make_requests(root: Path) -> None:
    """Have the folder of requests, before the disk is full: a new directory takes room."""
    (root / DOT_DIR / _FOLDER).mkdir(parents=True, exist_ok=True)


def requested_removals(root: Path) -> frozenset[str]:
    """Digests of all that was asked to go and is not gone everywhere."""
    try:
        return frozenset(path.name for path in (root / DOT_DIR / _FOLDER).iterdir())
    except FileNotFoundError:
        return frozenset()


def forget_removal(root: Path, digest: str) -> None:
    """Drop a request that was carried out in every tier."""
    (root / DOT_DIR / _FOLDER / digest).unlink(missing_ok=True)
