"""Protect a checkpoint on the disk from every deletion, until it is unprotected."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.fsync import sync_directory
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.path_layout import MANIFEST, PROTECTION
from bt_lightning.protection_record import Protection

if TYPE_CHECKING:
    from pathlib import Path


def protect_local(path: Path, protection: Protection) -> None:
    """Protect the checkpoint directory `path`; an earlier protection is replaced.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CheckpointCorruptError: its manifest is damaged.
        OSError: the disk refused.
    """
    read_manifest(path)
    part = f".{PROTECTION}.{uuid.uuid4().hex}.part"  # two processes may protect it at a time
    replace_small(path / PROTECTION, protection.to_bytes(), part=part)
    if not (path / MANIFEST).exists():
        read_manifest(path)


def unprotect_local(path: Path) -> None:
    """Remove the protection of the checkpoint directory `path`; idempotent."""
    (path / PROTECTION).unlink(missing_ok=True)
    sync_directory(path)


def protection_of(path: Path) -> Protection | None:
    """The protection of the checkpoint directory `path`; None if there is none.

    A record that cannot be read protects as well.
    """
    try:
        return Protection.from_bytes(read_small_file(path / PROTECTION, RECORD))
    except (FileNotFoundError, NotADirectoryError):
        # a dangling symbolic link protects as well
        return Protection() if is_protected_local(path) else None
    except (OSError, ValueError):
        return Protection()


def is_protected_local(path: Path) -> bool:
    """Whether the checkpoint directory `path` is protected."""
    return os.path.lexists(path / PROTECTION)
