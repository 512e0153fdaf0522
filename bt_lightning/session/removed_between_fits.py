"""What becomes of a checkpoint whose removal is asked for, where no worker may have it at hand."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.removal_requester import Requester

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import Manifest


def find_to_remove(final: Path, root: Path) -> tuple[Manifest | None, bool]:
    """The manifest at `final`, if it can be read; and whether its copy in the store is to go."""
    try:
        return read_manifest(final), False
    except CheckpointCorruptError:
        return None, False  # it may be of a newer version, or be repaired: not ours to judge
    except CheckpointNotFoundError:
        with contextlib.suppress(OSError):  # of a disk that fails: it holds no checkpoint
            delete_directory(final, root)  # never committed: nobody can be reading it
    except OSError:
        pass  # it can be asked for by what was saved or found under that name
    return None, True


def ask_next_worker(root: Path, manifest: Manifest) -> None:
    """Ask for the removal of a checkpoint while no worker runs."""
    try:
        request_local_removal(root, manifest.digest, Requester.TRAINING)
    except OSError as error:
        name = manifest.checkpoint_id
        warnings.warn(f"{name} stays, though it may go: {error}", stacklevel=3)
