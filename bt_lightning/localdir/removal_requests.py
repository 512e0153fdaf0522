"""Removal requests on disk: who may ask does, and the worker deletes when it may.

One small file per request, named by the digest of the manifest that is to go, so that a request
outlives every process and cannot hit a later generation of the same id. It is empty where the
training asks, so that it needs no room on a full disk; any other requester stands in it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DirectoryUnusableError
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.directory_walk import entries
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.path_layout import DOT_DIR, is_digest
from bt_lightning.removal_requester import Requester

if TYPE_CHECKING:
    import os
    from pathlib import Path

_FOLDER: Final = "remove"
_MOST: Final = 100_000


def request_local_removal(root: Path, digest: str, by: Requester = Requester.TRAINING) -> None:
    """Ask that the checkpoint with this manifest digest goes, in every tier.

    What a person asked for stays a person's request, whoever asks after that.

    Raises:
        OSError: the disk refused. If it took the request but not who asks, the training asks.
    """
    make_requests(root)
    file = root / DOT_DIR / _FOLDER / digest
    file.touch()
    if by is not Requester.TRAINING:
        replace_small(file, by.to_bytes())


def make_requests(root: Path) -> None:
    """Have the folder of requests, before the disk is full: a new directory takes room."""
    (root / DOT_DIR / _FOLDER).mkdir(parents=True, exist_ok=True)


def requested_local_removals(root: Path) -> dict[str, Requester]:
    """Digests of all that was asked to go and is not gone everywhere, and who asked.

    Of more than there can be, as many as are taken at a time: the others follow.
    """
    found: dict[str, Requester] = {}
    with contextlib.suppress(FileNotFoundError, DirectoryUnusableError):
        for entry in entries(str(root / DOT_DIR / _FOLDER)):
            if is_digest(entry.name):
                found[entry.name] = _requester(root, entry)
            if len(found) == _MOST:
                break
    return found


def forget_removal(root: Path, digest: str) -> None:
    """Drop a request that was carried out in every tier."""
    (root / DOT_DIR / _FOLDER / digest).unlink(missing_ok=True)


def _requester(root: Path, entry: os.DirEntry[str]) -> Requester:
    """Who asked; the training, if that cannot be read: its requests do least."""
    try:
        if not entry.stat(follow_symlinks=False).st_size:
            return Requester.TRAINING
        data = read_small_file(root / DOT_DIR / _FOLDER / entry.name, RECORD)
    except (OSError, ValueError):
        return Requester.TRAINING
    return Requester.from_bytes(data, Requester.TRAINING)
